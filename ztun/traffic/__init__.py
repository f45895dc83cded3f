"""What a proxy does with the endpoints of one destination: pure balancing, ejection and limits.

Reading order: ``policy`` (the plain values a DestinationRule resolves to), ``balancers`` (which endpoint next),
``ring`` (consistent hashing), ``locality`` (nearest first, failover), ``outlier`` (endpoints that keep failing),
``cluster`` (all of it for one destination). Time and random numbers are arguments everywhere.
"""
