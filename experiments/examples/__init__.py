"""Programs to read and copy; they import metajax alone.

python -m experiments.examples.quickstart       a learner, tasks, training and evaluation
python -m experiments.examples.your_model       networks of Flax, NNX, Equinox, and plain functions
python -m experiments.examples.your_data        a table as rows in groups
python -m experiments.examples.your_learner     a learner as four functions
python -m experiments.examples.own_inner_loop   a hand-written inner loop around `metajax.unroll`
python -m experiments.examples.minimal_maml     MAML with nothing but JAX and optax
"""
