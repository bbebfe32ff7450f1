/* Recycled timing events, per context. */
#ifndef SAIR_EVENT_POOL_H
#define SAIR_EVENT_POOL_H

#include "cuda_abi.h"

/* An event of the context current to the thread, which is `context`. NULL if the pool is exhausted and the driver makes
 * no more. */
CUevent sair_event_take(CUcontext context);
void sair_event_give(CUcontext context, CUevent event);
/* The context dies and its events with it: forget them. NULL: all of them. */
void sair_events_forget(CUcontext context);
/* After fork, in the child: the pool is empty, and no thread is left that could hold its lock. */
void sair_events_reset(void);

#endif
