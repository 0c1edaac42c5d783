"""What a recipe takes on given hardware, by arithmetic: memory, largest micro-batch, hours; nothing is run."""
