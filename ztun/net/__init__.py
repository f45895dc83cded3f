"""Sockets: everything between the kernel and the pure rooms.

Reading order: ``buffers`` (one read buffer for the whole loop), ``tls`` (the seam to OpenSSL), ``app_socket`` (an
application's connection), ``dial`` and ``listeners`` (making sockets), ``tunnel`` (an outgoing tunnel), ``pool``
(which tunnel to use), ``inbound`` (an accepted tunnel), ``relay`` (joining two ends), ``original_destination``,
``socks5``.
"""
