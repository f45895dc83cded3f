"""The engines: ``ambient`` for waypoints and gateways, ``sidecar`` for the client's side, and ``istio_waypoint``
to compare with what Istio's own waypoint does. ``router`` holds what they share: tables made on demand and kept.
"""
