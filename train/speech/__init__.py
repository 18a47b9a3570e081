"""Speech for training and evaluation: who speaks, synthesisers, what happens to sound on its way, phones and pitch."""
