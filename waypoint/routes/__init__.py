"""Documents compiled into ordered route tables. Pure: nothing here reads a clock, a file or a random number.

Reading order: ``names`` (host and gateway names), ``model`` (rules as values), ``compile`` (documents to rules),
``gateway_api`` (TCPRoute and its kin to the same rules), ``registry`` (services by address and name),
``destination_rules`` and ``traffic`` (subsets and policies), ``index`` (all of it for one snapshot), ``destinations``
(weights, resolution), ``outcome`` (a compiled answer), ``chains`` (longest prefix and server name), ``matching`` (the
meaning of a block per dialect), ``mesh_table`` with ``mesh_walk``, ``waypoint_table`` and ``gateway_table`` (the three
ways to an answer), ``listeners`` (what a gateway opens), ``findings`` and ``subnets`` (diagnostics that tables carry).
"""
