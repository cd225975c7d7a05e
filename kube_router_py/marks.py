"""The bits of a packet's mark that the agent uses, all of them in one place.

Direct server return needs whole marks (an IPVS fwmark service compares all 32 bits); everything
else sets and compares under a mask, and leaves the other bits to others.
"""

# Marks of direct server return (see ``proxy.dsr``): the first byte, and the bit of a TCP service.
DSR_MARK, DSR_MARK_MASK = 0x7D000000, 0xFF000000
DSR_MARK_TCP = 0x00800000

# A policy's chain admitted the packet; set and cleared within the chain of one pod. kube-router
# uses the same bit for it.
ADMITTED = 0x10000
