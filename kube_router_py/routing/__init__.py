"""The route controller: BGP by FRR, tunnels, CNI configuration and egress."""
