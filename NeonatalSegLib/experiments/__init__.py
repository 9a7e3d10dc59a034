"""The paper's experiments, run by run: what is trained (one module each), who runs it (runs), tables and plots."""
