"""SUB-SAMPLE-Q: one decision-maker and a crowd of n alike local agents, k of whom stand for all (Anand and Qu).

``multisets`` numbers the states of k exchangeable agents, ``system`` is the process, ``table`` learns (Algorithms 1 and
3), ``execute`` plays (Algorithm 2), ``joint`` and ``evaluate`` are the exact answers, ``bounds`` the paper's theorems.
"""
