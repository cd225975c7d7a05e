"""``doctor``: whether this node has what the agent needs, and what stands in its way.

``facts_*`` look (each look bounded in time, one that fails is a finding itself), the other modules
judge plain facts and are pure; ``examine`` leads from one to the other. ``place`` finds the agent:
where one runs, doctor judges by its flags, its credentials and the files that it sees.
"""
