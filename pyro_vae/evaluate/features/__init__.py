"""What classifiers make of features, and how like the data samples are."""
