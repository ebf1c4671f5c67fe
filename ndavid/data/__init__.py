"""Files to tensors: manifests, decoding, sampling, augmentation, datasets."""
