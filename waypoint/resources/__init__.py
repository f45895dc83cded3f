"""The routing documents as people write them, checked for shape and size; meaning is checked in ``analysis``.

Reading order: ``schema`` (limits and the base class), ``virtual_service``, ``destination_rule``, ``gateway``
(Istio's), ``gateway_api``, ``kinds`` (which document is which). Pydantic is used here and nowhere further inside.
"""
