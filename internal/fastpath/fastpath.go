package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// MaxTunnels is how many tunnels a Host takes.
const MaxTunnels = 4096

// grace is how long a plan stays as it is after no map refers to it any more, for programs
// that read it still. They take microseconds.
const grace = time.Second

// Plan is what the programs go by for the packets of a tunnel.
type Plan struct {
	Outer    encap.Outer
	MTU      int        // of the path, in bytes
	Device   int        // index of the device that outer packets leave by, an Ethernet, and come by
	Gateway  netip.Addr // IPv4 address of the next hop, on that device
	Mark     uint32     // of outer packets
	SendOnly bool       // leave what comes to the engine
	Inspect  bool       // leave TCP SYNs to the engine
}

// Host has the programs, for the tunnels of one network namespace. Any goroutine may use it.
type Host struct {
	programs programsObjects
	now      func() time.Time // as of time.Now

	attaching sync.Mutex // held across requests that wait for the kernel

	mu      sync.Mutex              // held for requests that do not
	devices map[int]*attached       // that outer packets come by, by index; written with attaching held too
	own     map[netip.Addr]struct{} // as the programs know them
	blind   bool                    // they do not know all: no tunnel has a Plan
	tunnels map[*Tunnel]struct{}
	unused  []unused // plans, the longest unused first
	ids     []uint32 // counters that no tunnel has
}

// attached is a program on a device.
type attached struct {
	link.Link
	users int // under attaching
}

// unused is a plan that no map refers to.
type unused struct {
	slot  uint32
	since time.Time
}

// Open loads the programs, for the network namespace of the calling thread. It takes Linux
// 6.6, and CAP_BPF and CAP_NET_ADMIN in the initial user namespace; the error says what is
// missing.
func Open() (*Host, error) {
	if err := findTCX(); err != nil {
		return nil, refusal(err)
	}
	spec, err := loadPrograms()
	if err != nil {
		return nil, err
	}
	if err := specialize(spec); err != nil {
		return nil, err
	}
	h := &Host{now: time.Now, own: map[netip.Addr]struct{}{}, tunnels: map[*Tunnel]struct{}{}, devices: map[int]*attached{}}
	if err := spec.LoadAndAssign(&h.programs, nil); err != nil {
		return nil, refusal(err)
	}
	for i := range h.programs.Plans.MaxEntries() {
		h.unused = append(h.unused, unused{slot: i})
	}
	for i := range h.programs.Counters.MaxEntries() {
		h.ids = append(h.ids, i)
	}
	return h, nil
}

// Close removes the programs. Tunnels are to be closed before.
func (h *Host) Close() {
	h.programs.Close()
}

// SetAddresses replaces the addresses of this host (G2). After an error, the programs leave
// all packets to the engine until it succeeds.
func (h *Host) SetAddresses(own []netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.setAddresses(own)
	h.blind = err != nil
	if h.blind {
		for t := range h.tunnels {
			t.stop()
		}
	}
	return err
}

// setAddresses needs mu.
func (h *Host) setAddresses(own []netip.Addr) error {
	next := make(map[netip.Addr]struct{}, len(own))
	for _, a := range own {
		next[a] = struct{}{}
	}
	for a := range h.own {
		if _, ok := next[a]; !ok {
			if err := ignoreMissing(h.programs.Own.Delete(number(a))); err != nil {
				return err
			}
			delete(h.own, a)
		}
	}
	for a := range next {
		if _, ok := h.own[a]; !ok {
			if err := h.programs.Own.Put(number(a), uint8(1)); err != nil {
				return err
			}
			h.own[a] = struct{}{}
		}
	}
	return nil
}

// Tunnel is a tunnel whose packets may be carried by the programs.
type Tunnel struct {
	host    *Host
	index   int // of the link
	id      uint32
	program link.Link // on the link; under the Host's attaching
	closing sync.Once

	// Under the Host's mu.
	device int   // that is attached; 0 for none
	plan   *Plan // nil for none
	slot   uint32
	held   bool
	closed bool
	final  stats.Snapshot // of a closed tunnel
}

// Add adds the tunnel with the link of an index, without a Plan.
func (h *Host) Add(index int) (*Tunnel, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ids) == 0 {
		return nil, fmt.Errorf("%d tunnels have it already", MaxTunnels)
	}
	t := &Tunnel{host: h, index: index, id: h.ids[0]}
	if err := h.programs.Counters.Put(t.id, make([]programsCounter, ebpf.MustPossibleCPU())); err != nil {
		return nil, err
	}
	h.ids = h.ids[1:]
	h.tunnels[t] = struct{}{}
	return t, nil
}

// Attached reports whether Attach has been called for a device that exists still.
func (t *Tunnel) Attached(device int) bool {
	h := t.host
	h.mu.Lock()
	defer h.mu.Unlock()
	return t.device == device && h.devices[device].alive()
}

// Attach has the programs look at the packets that leave by the link, and at those that come by
// a device, for plans by it. It must be called in the Host's network namespace, and waits
// for the kernel, for some 20 ms (tcx_entry_sync in include/net/tcx.h). Once more for the same
// device it does nothing.
func (t *Tunnel) Attach(device int) error {
	h := t.host
	h.attaching.Lock()
	defer h.attaching.Unlock()
	if t.Attached(device) {
		return nil
	}
	h.mu.Lock()
	former, closed := t.device, t.closed
	h.mu.Unlock()
	if closed {
		return nil
	}
	err := t.attachLink()
	if err == nil {
		err = h.attach(device)
	}
	if err != nil {
		device = 0
	}
	h.mu.Lock()
	t.device = device
	if t.plan != nil && t.plan.Device != device {
		t.stop()
	}
	h.mu.Unlock()
	h.detach(former)
	return err
}

// Use has the programs go by p from their next packet on. With false they leave all packets to
// the engine: p's device is not attached, plans change faster than their memory becomes
// free, or not all addresses of this host are known. It does not wait.
func (t *Tunnel) Use(p Plan) bool {
	h := t.host
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case t.closed:
		return false
	case t.plan != nil && *t.plan == p:
		return true
	case h.blind, t.device != p.Device, t.use(p) != nil:
		t.stop()
		return false
	}
	return true
}

// use writes p, and has the maps refer to it. It needs mu.
func (t *Tunnel) use(p Plan) error {
	h := t.host
	if len(h.unused) == 0 || h.now().Sub(h.unused[0].since) < grace {
		return errBusy
	}
	slot := h.unused[0].slot
	if err := h.programs.Plans.Put(slot, t.encode(p)); err != nil {
		return err
	}
	h.unused = h.unused[1:]
	former, formerSlot := t.plan, t.slot
	t.plan, t.slot = &p, slot
	err := t.refer()
	if !p.SendOnly {
		err = errors.Join(err, h.programs.Pairs.Put(pairOf(&p), slot))
	}
	if former != nil {
		if err != nil || p.SendOnly || pairOf(former) != pairOf(&p) {
			err = errors.Join(err, h.forget(former, formerSlot))
		}
		h.unused = append(h.unused, unused{formerSlot, h.now()})
	}
	return err
}

// errBusy reports that plans change faster than their memory becomes free.
var errBusy = errors.New("plans change too often")

// refer has the map of links refer to the plan, if there is one that is not held. It needs mu.
func (t *Tunnel) refer() error {
	if t.plan == nil || t.held {
		return ignoreMissing(t.host.programs.Links.Delete(uint32(t.index)))
	}
	return t.host.programs.Links.Put(uint32(t.index), t.slot)
}

// forget takes p, which was in a slot, out of the map of pairs, unless another tunnel has the
// pair by now. It needs mu.
func (h *Host) forget(p *Plan, slot uint32) error {
	var now uint32
	if err := h.programs.Pairs.Lookup(pairOf(p), &now); err != nil || now != slot {
		return ignoreMissing(err)
	}
	return h.programs.Pairs.Delete(pairOf(p))
}

// Stop leaves all packets to the engine, until Use. It does not wait.
func (t *Tunnel) Stop() {
	t.host.mu.Lock()
	defer t.host.mu.Unlock()
	t.stop()
}

// stop needs mu.
func (t *Tunnel) stop() {
	if t.plan == nil {
		return
	}
	h := t.host
	_ = h.forget(t.plan, t.slot)
	h.unused = append(h.unused, unused{t.slot, h.now()})
	t.plan = nil
	_ = t.refer()
}

// Hold leaves the packets that are to be sent to the engine while held is true (T8). It does
// not wait.
func (t *Tunnel) Hold(held bool) {
	t.host.mu.Lock()
	defer t.host.mu.Unlock()
	if t.held != held && !t.closed {
		t.held = held
		_ = t.refer()
	}
}

// Stats returns what the programs have carried. It does not wait.
func (t *Tunnel) Stats() stats.Snapshot {
	t.host.mu.Lock()
	defer t.host.mu.Unlock()
	return t.stats()
}

// stats needs mu.
func (t *Tunnel) stats() (s stats.Snapshot) {
	if t.closed {
		return t.final
	}
	var counts []programsCounter
	if err := t.host.programs.Counters.Lookup(t.id, &counts); err != nil {
		return s
	}
	for _, c := range counts {
		s.TX.Packets += c.SentPackets
		s.TX.Bytes += c.SentBytes
		s.TX.Drops[stats.SendError] += c.Refused
		s.RX.Packets += c.ReceivedPackets
		s.RX.Bytes += c.ReceivedBytes
	}
	return s
}

// Close takes the tunnel out, and waits for the kernel, unless the link is gone. Stats goes on to
// return what was counted. Closing once more does nothing.
func (t *Tunnel) Close() {
	t.closing.Do(func() {
		h := t.host
		h.attaching.Lock()
		defer h.attaching.Unlock()
		t.Stop()
		if t.program != nil {
			t.program.Close()
		}
		h.mu.Lock()
		t.final = t.stats()
		t.closed = true
		h.ids = append(h.ids, t.id)
		delete(h.tunnels, t)
		h.mu.Unlock()
		h.detach(t.device)
	})
}

// attachLink has the program for what leaves run on the link. It needs attaching.
func (t *Tunnel) attachLink() (err error) {
	if t.program == nil {
		t.program, err = link.AttachTCX(link.TCXOptions{
			Interface: t.index, Program: t.host.programs.GoipipOut, Attach: ebpf.AttachTCXEgress,
		})
	}
	return refusal(err)
}

// attach has the program for what comes run on a device. It needs attaching.
func (h *Host) attach(device int) error {
	a := h.devices[device]
	if !a.alive() {
		l, err := link.AttachTCX(link.TCXOptions{
			Interface: device, Program: h.programs.GoipipIn, Attach: ebpf.AttachTCXIngress,
		})
		if err != nil {
			return refusal(err)
		}
		next := &attached{Link: l}
		if a != nil { // of a device that is gone
			next.users = a.users
			defer a.Close()
		}
		a = next
		h.setDevice(device, a)
	}
	a.users++
	return nil
}

// detach ends what attach began, if that was of a device. It needs attaching.
func (h *Host) detach(device int) {
	a := h.devices[device]
	if a == nil {
		return
	}
	a.users--
	if a.users == 0 {
		h.setDevice(device, nil)
		a.Close()
	}
}

// setDevice needs attaching.
func (h *Host) setDevice(device int, a *attached) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a == nil {
		delete(h.devices, device)
		return
	}
	h.devices[device] = a
}

// alive reports whether the device that the program is on still exists.
func (a *attached) alive() bool {
	if a == nil {
		return false
	}
	info, err := a.Info()
	return err == nil && info.TCX() != nil && info.TCX().Ifindex != 0
}

func (t *Tunnel) encode(p Plan) programsPlan {
	e := programsPlan{
		Link:    uint32(t.index),
		Device:  uint32(p.Device),
		Local:   number(p.Outer.Local),
		Remote:  number(p.Outer.Remote),
		Gateway: number(p.Gateway),
		Mark:    p.Mark,
		Counter: t.id,
		Mtu:     uint16(min(p.MTU, packet.IPv4MaxLen)),
		Ttl:     p.Outer.TTL,
		Tos:     p.Outer.TOS,
	}
	if p.Outer.InheritTOS {
		e.Flags |= planInheritTOS
	}
	if p.Outer.NoPMTUDisc {
		e.Flags |= planInheritDF
	}
	if p.Inspect {
		e.Flags |= planInspect
	}
	return e
}

// Of enum plan_flag.
const (
	planInheritTOS = 1
	planInheritDF  = 2
	planInspect    = 4
)

func pairOf(p *Plan) programsPair {
	return programsPair{Local: number(p.Outer.Local), Remote: number(p.Outer.Remote)}
}

// number returns an IPv4 address as programs load it from a header.
func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
