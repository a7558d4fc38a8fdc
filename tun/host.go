package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Host holds a netlink socket of one network namespace, which all its devices share.
// Any goroutine may use it.
type Host struct {
	mu      sync.Mutex // held across a request, which may wait for others in the kernel
	sockets map[int]*nl.SocketHandle
	closed  bool
}

// NewHost returns a Host of the network namespace of the calling thread.
func NewHost() (*Host, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE) // to no events
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	for _, err := range []error{s.SetSendTimeout(&nl.SocketTimeoutTv), s.SetReceiveTimeout(&nl.SocketTimeoutTv)} {
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("open netlink: %w", err)
		}
	}
	// Both are improvements that a kernel may lack: errors with a text (Linux 4.12),
	// and lists that the kernel filters (Linux 4.20).
	_ = s.SetExtAck(true)
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &Host{sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

// Close closes the netlink socket. The devices stay: they carry packets and can be
// closed, but Open, Setup and Change return os.ErrClosed, and QueueDrops returns the
// last known count.
func (h *Host) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		h.sockets[unix.NETLINK_ROUTE].Close()
	}
}

// execute sends a request and returns the answers of type answer.
func (h *Host) execute(req *nl.NetlinkRequest, answer uint16) ([][]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, os.ErrClosed
	}
	req.Sockets = h.sockets
	return req.Execute(unix.NETLINK_ROUTE, answer)
}

// do sends a request that has no answer but an acknowledgement.
func (h *Host) do(req *nl.NetlinkRequest) error {
	_, err := h.execute(req, 0)
	return err
}

// linkIndex returns the index of the link called name. Its cost does not depend on the
// number of links.
func (h *Host) linkIndex(name string) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, os.ErrClosed
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	// Any socket of the namespace will do (netdevice(7)).
	if err := unix.IoctlIfreq(h.sockets[unix.NETLINK_ROUTE].Socket.GetFd(), unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, os.NewSyscallError("SIOCGIFINDEX", err)
	}
	return int(ifr.Uint32()), nil
}

// txDropped returns the link's tx_dropped, in packets.
func (h *Host) txDropped(index int) (uint64, error) {
	// struct if_stats_msg in linux/if_link.h: family and padding, index, filter.
	msg := append(make([]byte, 4), nl.Uint32Attr(uint32(index))...)
	msg = append(msg, nl.Uint32Attr(1<<(unix.IFLA_STATS_LINK_64-1))...)
	// In struct rtnl_link_stats64, seven counters of 8 bytes stand before tx_dropped.
	const offset = 7 * 8

	req := nl.NewNetlinkRequest(unix.RTM_GETSTATS, 0)
	req.AddRawData(msg)
	answers, err := h.execute(req, unix.RTM_NEWSTATS)
	if err != nil {
		return 0, err
	}
	for _, answer := range answers {
		attrs, err := nl.ParseRouteAttr(answer[min(len(msg), len(answer)):])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_STATS_LINK_64 && len(a.Value) >= offset+8 {
				return nl.NativeEndian().Uint64(a.Value[offset:]), nil
			}
		}
	}
	return 0, errors.New("no statistics in the answer")
}
