/* Ending a run from outside, by SIGINT: a loop of a model need not end by itself.
 *
 * While a run that wants it is on, SIGINT is caught, and handed on to whoever had it before. The host
 * function asks in every iteration of a loop, and with every launch and allocation, whether there was
 * one since the run began. */

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "shim.h"

_Atomic uint32_t abqc_interrupts;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int32_t catching; /* runs */
static struct sigaction previous;

static void on_interrupt(int number, siginfo_t *info, void *context) {
    atomic_fetch_add(&abqc_interrupts, 1);
    if (previous.sa_flags & SA_SIGINFO) previous.sa_sigaction(number, info, context);
    else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN)
        previous.sa_handler(number);
}

void abqc_catch_interrupts(void) {
    struct sigaction own = {.sa_sigaction = on_interrupt, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&own.sa_mask);
    pthread_mutex_lock(&lock);
    if (catching++ == 0) sigaction(SIGINT, &own, &previous);
    pthread_mutex_unlock(&lock);
}

/* Gives the signal back, unless somebody else has taken it meanwhile. */
void abqc_leave_interrupts(void) {
    struct sigaction current;
    pthread_mutex_lock(&lock);
    if (--catching == 0 && sigaction(SIGINT, &previous, &current) == 0 &&
        !(current.sa_flags & SA_SIGINFO && current.sa_sigaction == on_interrupt))
        sigaction(SIGINT, &current, NULL);
    pthread_mutex_unlock(&lock);
}

void abqc_rt_poll(abqc_ctx *ctx) {
    if (ctx->catches &&
        atomic_load_explicit(&abqc_interrupts, memory_order_relaxed) != ctx->interrupts)
        abqc_fail(ctx, ABQC_E_INTERRUPTED, "the run was interrupted");
}
