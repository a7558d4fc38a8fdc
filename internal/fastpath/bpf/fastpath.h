/* What goipip shares with its two programs. All addresses are in network byte order, all
 * other numbers in the host's. */

/* A plan is what a program goes by for the packets of a tunnel. It does not change while a
 * map refers to it, nor for a second after that. */
struct plan {
	__u32 link;    /* index of the tunnel's link */
	__u32 device;  /* index of the device that outer packets leave by, and come by */
	__u32 local;   /* of the outer header */
	__u32 remote;
	__u32 gateway; /* the next hop, on device */
	__u32 mark;    /* of outer packets (O10) */
	__u32 counter; /* index in counters */
	__u16 mtu;     /* of the path, in bytes */
	__u8 ttl;      /* 0 inherits (T10) */
	__u8 tos;      /* without ECN bits (T9) */
	__u8 flags;
	__u8 pad[3];
};

enum plan_flag {
	PLAN_INHERIT_TOS = 1, /* in place of tos */
	PLAN_INHERIT_DF = 2,  /* DF only where the inner packet has it (T5) */
	PLAN_INSPECT = 4,     /* TCP SYNs are the engine's */
};

struct pair {
	__u32 local;
	__u32 remote;
};

/* Counts of one processor. Bytes are those from the inner header on. */
struct counter {
	__u64 sent_packets;
	__u64 sent_bytes;
	__u64 received_packets;
	__u64 received_bytes;
	__u64 refused; /* were to be sent, and the kernel had no memory */

	__u64 train_began; /* see unmerged; nanoseconds */
	__u64 train_len;   /* in packets */
	__u64 train_until;
};

enum {
	MAX_TUNNELS = 4096,
	MAX_PLANS = 4 * MAX_TUNNELS, /* those that no map refers to any more among them */
};
