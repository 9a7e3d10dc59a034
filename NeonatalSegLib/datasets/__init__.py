"""Where training and test data come from: BIDS folders, the dHCP release, splits and the synthetic phantom."""
