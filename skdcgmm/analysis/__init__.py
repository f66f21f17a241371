"""What is learnt from how images score: outliers, clusters of components, labels that spread."""
