"""What d2kd says to what a person gets wrong: a table of inputs and sentences, each a test and a row of a page."""
