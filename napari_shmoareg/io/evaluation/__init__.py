"""The folder of an evaluation: a case per pair, and the tables that they make.

::

    evaluation.json    what it was begun with: data set, pairs, weights, settings, versions
    cases/0001.json    what one pair came to, or its error; whole or not there
    pairs.csv          a line per pair and stage
    labels.csv         a line per pair, stage and label
    summary.csv        mean, SD, median, least and most, per stage and label
    summary.md         the same to read, with definitions, failures, settings, machine
    against-NAME.md    Wilcoxon signed-rank tests against another evaluation; also as .csv
"""
