#include "contention.h"

#include <string.h>

/* Spans are trusted again this long after the last activity of a peer. */
#define QUIET_NS (300 * SAIR_MS)
#define AGENT_FRESH_NS (2000 * SAIR_MS)
#define REFRESH_NS (20 * SAIR_MS)
/* The shortest stretch of NVML samples worth comparing: three of its samples. */
#define COMPARE_NS (500 * SAIR_MS)
#define GAIN 0.3
#define SCALE_MIN 0.25
#define SCALE_MAX 4.0
#define BIAS_MIN 0.7
#define BIAS_MAX 1.4
/* Below this the comparison is mostly NVML's resolution. */
#define BUSY_MIN_NS (10 * (int64_t)SAIR_MS)
/* Overlap is judged over this stretch: of two overlapping intervals the first to settle takes the whole union, so a
 * short stretch compares one's work with the other's. Nearer to 1 than the deadband is that same effect at the ends. */
#define OVERLAP_NS (2000 * SAIR_MS)
/* At the beginning, over what there is. */
#define OVERLAP_MIN_NS (200 * SAIR_MS)
#define OVERLAP_DEADBAND 0.85
/* Signs of other tenants count for this long. */
#define STRETCHED_NS (5000 * SAIR_MS)
/* Processes of one container stretch each other's launches too. That their union is longer than the sum of their costs
 * by this factor can only be others' doing. */
#define PEERS_RATIO 1.125
/* A sibling that has taken no budget for this long takes no turn. */
#define SIBLING_NS (1000 * SAIR_MS)
#define HISTORY 256

struct moment {
    uint64_t ns;
    int64_t estimated, measured;
};

/* Touched by the holder of the device's `refreshing` only. */
static struct view {
    uint64_t refreshed_ns;
    struct moment history[HISTORY];
    uint32_t moments;
    uint64_t compared_sequence, from_ns, busy_ns; /* the agent's figures at the last comparison */
    double overlap;
    uint64_t peers_seen_ns; /* when the container as a whole last showed signs of other tenants */
    uint32_t bias_steps, scale_steps; /* comparisons since the present situation began */
} views[SAIR_DEVICES];

static struct view *view_of(const struct sair_device *device) {
    return &views[device - sair_process.devices];
}

/* A consistent copy of the agent's block; 0 while it is being written. */
static int read_agent(const struct sair_page_gpu *gpu, struct sair_page_agent *copy) {
    for (int i = 0; i < 4; i++) {
        uint64_t before = SAIR_LOAD_ACQUIRE(&gpu->agent.sequence);
        if (before == 0) return 0;
        copy->sequence = before;
        copy->updated_ns = SAIR_LOAD(&gpu->agent.updated_ns);
        copy->peers_last_active_ns = SAIR_LOAD(&gpu->agent.peers_last_active_ns);
        copy->own_busy_ns = SAIR_LOAD(&gpu->agent.own_busy_ns);
        copy->own_busy_from_ns = SAIR_LOAD(&gpu->agent.own_busy_from_ns);
        copy->own_busy_until_ns = SAIR_LOAD(&gpu->agent.own_busy_until_ns);
        copy->peers_active = SAIR_LOAD(&gpu->agent.peers_active);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if ((before & 1) == 0 && SAIR_LOAD(&gpu->agent.sequence) == before) return 1;
    }
    return 0;
}

/* Sums as they stood at `ns`, interpolated; 0 where the history does not reach back that far. */
static int recall(const struct view *view, uint64_t ns, double *estimated, double *measured) {
    uint32_t oldest = view->moments > HISTORY ? view->moments - HISTORY : 0;
    for (uint32_t i = view->moments; i > oldest + 1; i--) {
        const struct moment *later = &view->history[(i - 1) % HISTORY], *earlier = &view->history[(i - 2) % HISTORY];
        if (earlier->ns > ns) continue;
        double part = later->ns > earlier->ns ? (double)(ns - earlier->ns) / (double)(later->ns - earlier->ns) : 0;
        if (part > 1) part = 1;
        *estimated = (double)earlier->estimated + part * (double)(later->estimated - earlier->estimated);
        *measured = (double)earlier->measured + part * (double)(later->measured - earlier->measured);
        return 1;
    }
    return 0;
}

static double clamp(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

/* The first comparisons weigh more: a running mean until the gain is reached. */
static void step(uint64_t *ppm, uint32_t *steps, double target, double low, double high) {
    double now = (double)SAIR_LOAD(ppm) * 1e-6, gain = 1.0 / ++*steps;
    if (gain < GAIN) gain = GAIN;
    if (now < low || now > high) now = 1; /* never set, or a page that was lost */
    SAIR_STORE(ppm, (uint64_t)(clamp(now + gain * (target - now), low, high) * 1e6));
}

/* NVML's figure over the stretch since the last comparison, against our own for the very same stretch. */
static void compare(struct view *view, struct sair_page_gpu *gpu, const struct sair_page_agent *agent) {
    if (view->from_ns == 0 || agent->own_busy_until_ns < view->from_ns || agent->own_busy_ns < view->busy_ns)
        goto restart;
    if (agent->own_busy_until_ns - view->from_ns < COMPARE_NS) return;
    double estimated_from, estimated_until, measured_from, measured_until;
    if (!recall(view, view->from_ns, &estimated_from, &measured_from)) goto restart;
    if (!recall(view, agent->own_busy_until_ns, &estimated_until, &measured_until)) goto restart;
    double nvml = (double)(agent->own_busy_ns - view->busy_ns);
    double estimated = estimated_until - estimated_from, measured = measured_until - measured_from;
    uint64_t sequence = SAIR_LOAD(&gpu->scale_sequence);
    /* One process of the container brings the shared factors forward per update of the agent. */
    if (sequence != agent->sequence && SAIR_CAS(&gpu->scale_sequence, &sequence, agent->sequence)) {
        int alone = agent->peers_last_active_ns == 0 || agent->peers_last_active_ns + QUIET_NS < view->from_ns;
        double bias = clamp((double)SAIR_LOAD(&gpu->bias_ppm) * 1e-6, BIAS_MIN, BIAS_MAX);
        if (alone) view->scale_steps = 0;
        if (alone && measured > (double)BUSY_MIN_NS)
            step(&gpu->bias_ppm, &view->bias_steps, nvml / measured, BIAS_MIN, BIAS_MAX);
        if (!alone && estimated > (double)BUSY_MIN_NS)
            step(&gpu->scale_ppm, &view->scale_steps, nvml / bias / estimated, SCALE_MIN, SCALE_MAX);
    }
restart:
    view->from_ns = agent->own_busy_until_ns;
    view->busy_ns = agent->own_busy_ns;
}

/* Kernels of different streams or processes that ran side by side: the union of the container's spans is less than the
 * sum of its costs. Both sums are the container's, because siblings' intervals hide each other too. */
static void update_overlap(struct view *view, const struct moment *latest) {
    double estimated, measured;
    uint64_t from = latest->ns - OVERLAP_NS;
    if (view->moments < HISTORY && from < view->history[0].ns) from = view->history[0].ns;
    if (latest->ns - from < OVERLAP_MIN_NS || !recall(view, from, &estimated, &measured)) return;
    double sum = (double)latest->estimated - estimated;
    if (sum < (double)BUSY_MIN_NS) return;
    double ratio = ((double)latest->measured - measured) / sum;
    view->overlap = ratio > OVERLAP_DEADBAND ? 1 : clamp(ratio, SCALE_MIN, 1);
    if (ratio > PEERS_RATIO) view->peers_seen_ns = latest->ns;
}

/* How many processes of the container have used the GPU lately, this one included, and its place among them. */
static uint32_t count_processes(const struct sair_device *device, uint64_t now_ns, uint32_t *rank) {
    uint32_t count = 1;
    *rank = 0;
    for (unsigned i = 0; i < SAIR_PAGE_SLOTS; i++) {
        const struct sair_page_slot *slot = &sair_process.page->slots[i];
        if (slot == device->slot || SAIR_LOAD(&slot->owner) >> 32 != (uint64_t)device->index + 1) continue;
        if (SAIR_LOAD(&slot->last_seen_ns) + SIBLING_NS < now_ns) continue;
        count++;
        if (slot < device->slot) ++*rank;
    }
    return count;
}

/* Without an agent: who keeps quiet when. A process by itself tells other tenants by its stretched launches. Siblings
 * first take turns among themselves, while what they believe of their costs may hold each other's time; once it does
 * not, the container as a whole tells. */
static void update_quiet(struct sair_device *device, const struct view *view, int is_told, uint64_t now_ns) {
    uint32_t rank = 0, processes = 1, stretched = 0;
    if (!is_told && SAIR_LOAD(&device->gpu->stretched_ns) + STRETCHED_NS > now_ns) {
        processes = count_processes(device, now_ns, &rank);
        stretched = processes == 1 || view->peers_seen_ns + STRETCHED_NS > now_ns;
        if (!stretched && view->overlap >= 1) processes = 1;
    }
    SAIR_STORE(&device->rank, rank);
    SAIR_STORE(&device->siblings, processes);
    SAIR_STORE(&device->stretched, stretched);
}

static void refresh(struct sair_device *device, struct view *view, uint64_t now_ns) {
    struct sair_page_gpu *gpu = device->gpu;
    if (now_ns < view->refreshed_ns + REFRESH_NS) return;
    view->refreshed_ns = now_ns;
    struct moment latest = {now_ns, SAIR_LOAD(&gpu->estimated_ns), SAIR_LOAD(&gpu->measured_ns)};
    view->history[view->moments++ % HISTORY] = latest;
    update_overlap(view, &latest);
    double factor = view->overlap > 0 ? view->overlap : 1;
    struct sair_page_agent agent;
    uint32_t trusted = 0, contended = 0;
    if (read_agent(gpu, &agent) && agent.updated_ns + AGENT_FRESH_NS > now_ns) {
        if (agent.own_busy_until_ns != 0) compare(view, gpu, &agent);
        trusted = agent.peers_active == 0 && agent.peers_last_active_ns + QUIET_NS < now_ns;
        contended = !trusted;
        if (contended) factor = clamp((double)SAIR_LOAD(&gpu->scale_ppm) * 1e-6, SCALE_MIN, SCALE_MAX);
    }
    update_quiet(device, view, trusted || contended, now_ns);
    SAIR_STORE(&device->factor_ppm, (uint32_t)(factor * 1e6));
    SAIR_STORE(&device->contended, contended);
    SAIR_STORE(&device->trusted, trusted);
}

void sair_contention_refresh(struct sair_device *device, uint64_t now_ns) {
    if (__atomic_exchange_n(&device->refreshing, 1u, __ATOMIC_ACQUIRE) != 0) return;
    refresh(device, view_of(device), now_ns);
    SAIR_STORE_RELEASE(&device->refreshing, 0u);
}

void sair_contention_note(struct sair_device *device, int64_t fresh_ns, int64_t undisturbed_ns) {
    SAIR_ADD(&device->gpu->estimated_ns, undisturbed_ns);
    SAIR_ADD(&device->gpu->measured_ns, fresh_ns);
}
