"""The public names, for type checkers; __init__.py loads them when they are asked for."""

from NeonatalSegLib.annotation.completed import AnnotatedScan as AnnotatedScan
from NeonatalSegLib.annotation.completed import read_annotations as read_annotations
from NeonatalSegLib.annotation.new_study import start_study as start_study
from NeonatalSegLib.annotation.plan import BudgetSettings as BudgetSettings
from NeonatalSegLib.annotation.plan import Plan as Plan
from NeonatalSegLib.annotation.planning import plan_slices as plan_slices
from NeonatalSegLib.annotation.session import AnnotationSession as AnnotationSession
from NeonatalSegLib.annotation.slice_selection import ScanToPlan as ScanToPlan
from NeonatalSegLib.annotation.study import StudyScan as StudyScan
from NeonatalSegLib.datasets.bids import Subject as Subject
from NeonatalSegLib.datasets.bids import find_subjects as find_subjects
from NeonatalSegLib.datasets.cache import build_cache as build_cache
from NeonatalSegLib.datasets.phantom import Phantom as Phantom
from NeonatalSegLib.datasets.phantom import draw_newborn as draw_newborn
from NeonatalSegLib.datasets.phantom import write_newborn as write_newborn
from NeonatalSegLib.engine.client import Client as Client
from NeonatalSegLib.errors import Cancelled as Cancelled
from NeonatalSegLib.errors import NeonatalSegError as NeonatalSegError
from NeonatalSegLib.evaluation.folders import evaluate_folders as evaluate_folders
from NeonatalSegLib.evaluation.metrics import dice_per_class as dice_per_class
from NeonatalSegLib.evaluation.metrics import mean_dice_no_background as mean_dice_no_background
from NeonatalSegLib.evaluation.metrics import surface_distances as surface_distances
from NeonatalSegLib.evaluation.metrics import volumes_ml as volumes_ml
from NeonatalSegLib.evaluation.tables import Evaluation as Evaluation
from NeonatalSegLib.finetuning.run import finetune as finetune
from NeonatalSegLib.finetuning.settings import FineTuningSettings as FineTuningSettings
from NeonatalSegLib.models.bundle import Model as Model
from NeonatalSegLib.models.registry import find_model as find_model
from NeonatalSegLib.models.registry import list_models as list_models
from NeonatalSegLib.scans.grid import Grid as Grid
from NeonatalSegLib.scans.scan import Scan as Scan
from NeonatalSegLib.scans.scan import load_scan as load_scan
from NeonatalSegLib.scans.scan import make_scan as make_scan
from NeonatalSegLib.segmentation.outputs import segment_to_folder as segment_to_folder
from NeonatalSegLib.segmentation.outputs import write_outputs as write_outputs
from NeonatalSegLib.segmentation.segmenter import Segmentation as Segmentation
from NeonatalSegLib.segmentation.segmenter import Segmenter as Segmenter
from NeonatalSegLib.segmentation.segmenter import SegmentOptions as SegmentOptions
from NeonatalSegLib.tissues import TISSUES as TISSUES
from NeonatalSegLib.tissues import Tissue as Tissue
from NeonatalSegLib.training.run import train as train
from NeonatalSegLib.training.settings import TrainingSettings as TrainingSettings

__version__: str
__all__: list[str]
