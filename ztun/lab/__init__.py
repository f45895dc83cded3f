"""A whole mesh on one machine, for the demo and for the tests.

Reading order: ``topology`` (one description of the mesh, made from Kubernetes documents; ``deployment`` and
``addresses`` help it), ``fabric`` (what machines and network are made of; loopback addresses), ``netns`` (the other
fabric: network namespaces, joined as ``network`` says, and removed by whoever comes next, see ``reservation``),
``process``, ``programs`` and ``lab`` (the real programs, started, watched and stopped together), ``client`` and
``telnet`` (what a person with telnet does), ``wire``, ``tap`` and ``packets`` (what can be seen between the nodes),
``established`` (what a server sees), ``check``, ``capture_check`` and ``demo`` (the mesh put to the test, and
reported on), ``page_mesh``, ``page`` and ``page_report`` (the same for the examples of routing, in sidecar and in
ambient mode). ``machine`` is one node by itself, in a container for instance, ``dialer`` how its clients are asked to
connect, ``composed`` the check of the examples among containers. ``echo`` is the server of the examples.
``manifests`` and ``printed`` are the examples themselves, corrected and as published.
"""
