"""Methods x seeds of one config: what to train, jobs side by side, results, statistics, figures."""
