"""The main job: train one small model with two losses and look where its wrong answers land."""
