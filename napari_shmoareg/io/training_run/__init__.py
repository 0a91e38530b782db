"""The folder of a run of learning, and the learning itself.

::

    run.json               what the run was begun with: data set, weights, settings, versions
    split.json             which scans learn, judge and stay unseen, which were left out, what their files were
    checkup.csv            what the check-up found, a line per scan
    metrics.csv            a line per step
    validation.csv         a line per look at the validation pairs
    loads.csv              selections of each expert, added up over ten steps
    skipped.csv            pairs that could not be read when their step came
    tensorboard/           the same curves
    best.safetensors       weights at the best validation
    last.safetensors       weights of the last saved step
    training.safetensors   network, optimiser, random numbers and position of that step
    preview/               a validation pair as the network registers it now
    wish                   what was asked from outside: pause, go or stop
    lock                   who is working on it
"""
