"""Which GPU hosts which expert, and which experts get replicas, with a proof of how far from optimal that can be.

`answer.place_experts` is the door. `records` and `read` say what is asked; `bounds`, `counts`, `pack` and `load`
balance single layers, `every_count` solves small ones; `verify` checks answers independently; `generate` draws
instances; `baselines` holds what others do.
"""
