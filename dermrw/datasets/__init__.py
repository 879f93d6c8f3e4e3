"""HAM10000, the embedded sample and CIFAR-10: find, check, split, load and augment images."""
