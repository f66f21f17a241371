"""The estimators: scikit-learn's conventions around a stack."""
