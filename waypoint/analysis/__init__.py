"""What is wrong with a configuration: findings with a code, a place in a file and a hint, and corrected documents.

Reading order: ``codes`` (every code there is), ``report`` (collecting findings), ``syntax`` (names and labels), then
one object at a time: ``virtual_service``, ``unreachable``, ``destination_rule``, ``traffic_policy``, ``gateway``,
``gateway_api``. Between objects: ``configuration`` (what is analyzed), ``population`` (labels of pods),
``references``, ``conflicts``, ``protocols``, ``ambient``,
``policies``. ``analyzer`` runs them all, ``fixes``
corrects, ``stand_ins`` completes files that describe no running pods.
"""
