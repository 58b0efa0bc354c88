"""One question each: domains, few labels, missing modalities, smaller models, width, ..."""
