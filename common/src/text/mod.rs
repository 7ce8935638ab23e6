//! From dialogues to tokens and back: the one encoder of training, scoring and sampling.
