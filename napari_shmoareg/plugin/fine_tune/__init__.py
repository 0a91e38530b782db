"""The Fine-tune panel: trains weights on a data set in a child process."""
