"""The Fine-tune panel: from a data set to better weights, with a child process that learns."""
