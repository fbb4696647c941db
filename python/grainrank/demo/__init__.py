"""The main job: train one text encoder with two losses and look where its wrong answers land."""
