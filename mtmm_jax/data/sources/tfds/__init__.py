"""Any TFDS data set as a source, without TensorFlow."""
