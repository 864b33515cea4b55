"""From a plan to work: the ops of a layer, the layers of a stage, the tasks of a step."""
