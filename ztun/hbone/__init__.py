"""The tunnel: HTTP/2 CONNECT streams inside one connection, as bytes in and bytes out. No sockets, no clock.

Reading order: ``settings`` (the numbers), ``wire`` (frames), ``guard`` (what a peer may not do too often),
``holdings`` (what waits in all tunnels together), ``headers`` (header blocks), ``stream`` (one tunnelled connection),
``reader`` (received bytes into frames), ``exchange`` (requests and answers among them), ``control_frames`` (the rest,
with ``control``, the part that the ``h2`` package handles), ``roles`` (who a tunnel talks to), ``connection`` (the
whole), ``connect`` (CONNECT requests and answers).

What happens per connection or per chunk of payload never passes through ``h2``; what happens once per tunnel does.
That split is what makes a Python tunnel fast; ``connection`` says how the two stay in agreement.
"""
