package rawsock

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	"goipip/internal/packet"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// slotSize is the room for one packet, in bytes. It must hold the largest: a
// kernel that merged segments returns them as one packet of up to 64 KiB.
const slotSize = 1 << 16

// Receiver receives the packets of any number of pairs. One goroutine at a time may
// Receive; any goroutine may call the other methods at any time.
type Receiver struct {
	share    []bpf.Instruction // nil for the only receiver
	credit   *credit           // nil where the socket's buffer is the limit
	noCredit error             // why there is none

	from    *inlet // that Receive reads
	buf     []byte
	batch   batch
	packets []packet.IPv4

	mu     sync.Mutex // for what follows; Receive does not take it
	closed bool
	pairs  map[Pair]struct{}
	last   *inlet   // the newest
	inlets []*inlet // all that may be open
	drops  receiverDrops
}

// NewReceiver opens a receiver in the network namespace of the calling thread. It receives
// nothing until Add. Of several receivers of the same pairs, each has one share of shares,
// so that together they get each packet once: packets of one inner flow (addresses and
// ports) stay together, and fragments go by their addresses alone. A single receiver is
// share 0 of 1.
func NewReceiver(share, shares int) (*Receiver, error) {
	r := &Receiver{
		buf:     make([]byte, BatchSize*slotSize),
		batch:   newBatch(BatchSize, 1),
		packets: make([]packet.IPv4, 0, BatchSize),
		pairs:   map[Pair]struct{}{},
		drops:   receiverDrops{pairs: map[Pair]uint64{}},
	}
	if shares > 1 {
		r.share = shareFilter(uint32(share), uint32(shares))
	}
	first, err := openInlet()
	if err != nil {
		return nil, err
	}
	if r.credit, r.noCredit = newCredit(share, shares); r.noCredit == nil {
		if r.noCredit = first.fd.Control(r.credit.attach); r.noCredit != nil {
			_ = r.credit.close()
			r.credit = nil
		}
	}
	r.from, r.last, r.inlets = first, first, []*inlet{first}
	for i := range BatchSize {
		r.batch.set(i, 0, r.slot(i))
	}
	return r, nil
}

func (r *Receiver) slot(i int) []byte { return r.buf[i*slotSize : (i+1)*slotSize] }

// Add adds a pair. To add one that is there does nothing. Where NeedsGuard is not nil,
// Receive also returns packets of unknown pairs while there are two pairs or more.
//
// No packet of another pair is lost. If the socket is connected to another pair, a new one
// takes its place. Then Add must be called in the network namespace of the receiver, takes
// some milliseconds, and a few packets of the other pair may be received twice.
func (r *Receiver) Add(p Pair) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	if _, ok := r.pairs[p]; ok {
		return nil
	}
	r.settleDrops()
	if r.credit != nil {
		if err := r.credit.add(p, r.drops.pairs[p]); err != nil {
			return err
		}
	}
	r.pairs[p] = struct{}{}
	err := r.follow()
	if err != nil {
		delete(r.pairs, p)
		if r.credit != nil {
			_ = r.credit.remove(p)
			r.markSingle()
		}
	}
	return err
}

// Remove removes a pair, of which nothing is received from then on but what has arrived
// before. To remove one that is not there does nothing.
func (r *Receiver) Remove(p Pair) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	if _, ok := r.pairs[p]; !ok {
		return nil
	}
	r.settleDrops()
	if r.credit != nil {
		r.updatePairDrops(p)
		if err := r.credit.remove(p); err != nil {
			return err
		}
	}
	delete(r.pairs, p)
	return r.follow()
}

// follow makes the newest socket do what the set of pairs asks for.
func (r *Receiver) follow() error {
	if r.credit != nil {
		r.markSingle()
	}
	l := r.last
	if l.connected && len(r.pairs) > 0 && !r.single(l.pair) {
		return r.replace()
	}
	return l.fd.Control(func(fd int) error {
		if l.bound && !l.connected {
			if err := bind(fd, anyAddr); err != nil {
				return err
			}
			l.bound = false
		}
		if r.credit != nil {
			return nil // its filter knows the pairs
		}
		return r.attach(fd)
	})
}

// markSingle has the credit know the only pair.
func (r *Receiver) markSingle() {
	only := Pair{}
	if len(r.pairs) == 1 {
		for only = range r.pairs {
		}
	}
	r.credit.setSingle(only)
}

// single reports whether p is the only pair.
func (r *Receiver) single(p Pair) bool {
	_, ok := r.pairs[p]
	return ok && len(r.pairs) == 1
}

// attach attaches the filter for the set of pairs to the newest socket.
func (r *Receiver) attach(fd int) error {
	if r.credit != nil {
		return r.credit.attach(fd)
	}
	rest := r.share
	if rest == nil {
		rest = keepAll()
	}
	switch len(r.pairs) {
	case 0:
		return setFilter(fd, dropAll())
	case 1:
		if !r.last.connected {
			for p := range r.pairs {
				return setFilter(fd, pairFilter(p, rest))
			}
		}
	}
	if r.share == nil {
		return removeFilter(fd)
	}
	return setFilter(fd, r.share)
}

// Connect connects the socket, if there is exactly one pair, so that the kernel gives it
// only the packets of this pair, and gives them to it alone: until then each packet is also
// copied to it that is for others, and a filter drops it. It fails while there is no
// route to the remote address by the Device, TOS and Mark of route, or no such local
// address; its other fields are not used. If nothing has changed since it succeeded, with
// another number of pairs, or with a pair for any local address, it does nothing.
//
// TOS and Mark also choose the route to which the kernel applies a path MTU from an ICMP
// error (ipv4_sk_update_pmtu in net/ipv4/route.c). With several pairs, that is the route
// without TOS and mark.
func (r *Receiver) Connect(route Route) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	if len(r.pairs) != 1 {
		return nil
	}
	l := r.last
	if l.connected && l.lookup == route.lookup() {
		return nil
	}
	var pair Pair
	for pair = range r.pairs {
	}
	if pair.anyLocal() {
		return nil
	}
	return l.fd.Control(func(fd int) error {
		if err := l.lookup.set(fd, route.lookup()); err != nil {
			return err
		}
		if !l.connected {
			l.bound = true
			if err := bind(fd, pair.Local); err != nil {
				return err
			}
		}
		if err := connect(fd, pair.Remote); err != nil {
			return err
		}
		l.connected, l.pair = true, pair
		if r.credit != nil {
			return nil
		}
		return r.attach(fd)
	})
}

// NeedsGuard returns nil if the socket takes each packet, or drops it by its filter, so
// that the kernel never answers one with ICMP 3/2, or else why a [Guard] must take what
// it has no room for: a filter that counts needs CAP_BPF and CAP_NET_ADMIN in the initial
// user namespace, and Linux 5.11, or 5.5 if RLIMIT_MEMLOCK permits some MiB.
func (r *Receiver) NeedsGuard() error { return r.noCredit }

// Receive waits until there is a packet and returns it with all others that are
// there already, at most BatchSize, each from its outer header on. They are valid
// until the next Receive, and may be changed until then. It returns os.ErrClosed
// after Close. ICMP errors do not end it; an ErrorSocket receives them.
func (r *Receiver) Receive() ([]packet.IPv4, error) {
	r.packets = r.packets[:0]
	for {
		replaced, err := r.receive(r.from)
		if err != nil {
			return nil, err
		}
		if !replaced {
			return r.packets, nil
		}
		old := r.from
		r.from = old.next.Load()
		_ = old.fd.Close()
	}
}

// receive appends packets from one socket. It reports whether that is empty for good.
func (r *Receiver) receive(from *inlet) (replaced bool, err error) {
	fd, ok := from.fd.Acquire()
	if !ok {
		return false, os.ErrClosed
	}
	defer from.fd.Release()
	from.fd.Answer()
	for from.poller.Begin(); ; {
		replaced = from.next.Load() != nil // before the last look at it
		errno := r.take(fd)
		switch n := len(r.packets); {
		case fatal(errno):
			return false, os.NewSyscallError("recvmmsg", errno)
		case n == 1, n == BatchSize: // for a single packet, waiting would only be delay
			return false, nil
		case from.poller.Again():
		case n > 0:
			return false, nil
		case errno != unix.EAGAIN:
		case replaced:
			return true, nil
		case !from.poller.Wait():
			return false, os.ErrClosed
		}
	}
}

// Poke asks the goroutine that receives for a sign of life, see Answered.
func (r *Receiver) Poke() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.inlets {
		l.fd.Poke()
	}
}

// Answered reports whether that goroutine has been in Receive since the last Poke.
func (r *Receiver) Answered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !slices.ContainsFunc(r.inlets, func(l *inlet) bool { return !l.fd.Answered() })
}

// take appends what is there.
func (r *Receiver) take(fd int) syscall.Errno {
	have := len(r.packets)
	n, errno := r.batch.recvmmsg(fd, have)
	if errno == 0 {
		bytes := 0
		for i := have; i < have+n; i++ {
			p := r.slot(i)[:r.batch.len(i)]
			r.packets = append(r.packets, p)
			bytes += len(p)
		}
		if r.credit != nil {
			r.credit.consume(n, bytes)
		}
		return 0
	}
	// Other than EAGAIN and fatal, it is EINTR, no memory for the moment, or an ICMP
	// error that waited on the socket (sk_err), as a connected socket gets without
	// IP_RECVERR too. The call has taken it away, so that one call is wasted, and no
	// packet.
	return errno
}

// fatal reports whether repeating the call is pointless.
func fatal(errno syscall.Errno) bool {
	switch errno {
	case unix.EBADF, unix.ENOTSOCK, unix.EFAULT, unix.EINVAL:
		return true
	}
	return false
}

// Close closes the sockets and ends a Receive that waits. Closing once more does nothing.
func (r *Receiver) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.settleDrops()
	if r.credit != nil {
		for p := range r.pairs {
			r.updatePairDrops(p)
		}
	}
	r.closed = true
	var err error
	for _, l := range r.inlets {
		err = errors.Join(err, l.fd.Close())
	}
	if r.credit != nil {
		err = errors.Join(err, r.credit.close()) // no Receive uses it any more
	}
	if err != nil {
		return fmt.Errorf("close receiver: %w", err)
	}
	return nil
}
