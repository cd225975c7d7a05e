"""The lab's API server: an in-memory Kubernetes API that kubectl and client libraries accept.

    HTTP  -> server -> rbac, tokens          who may ask
                    -> patches, apply        what the new object would be
    lab's controllers --\\
                         +-> store -> defaulting, validation, allocation -> storage
    watches <- server <-------------------------------------------------- events

``store.Store`` is the whole API without HTTP; the lab's controllers use it in the same asyncio
loop. Nothing here is safe to call from another thread. Importing this package imports nothing
heavy: ``server`` alone needs aiohttp.
"""
