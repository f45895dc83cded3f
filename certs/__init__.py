"""Who a workload is: SPIFFE identities, the certificate authority and the live certificates of a proxy.

Reading order: ``spiffe`` (the name), ``authority`` and ``request`` (how a certificate is made), ``bundle``
(whom to trust), ``issuers`` (where certificates come from), ``store`` and ``renewal`` (certificates that
stay valid while a proxy runs), ``context`` (TLS on either side and the verification of a peer), ``server``
and ``cli``. Nothing here imports ``ztun`` or ``waypoint``.
"""
