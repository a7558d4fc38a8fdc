// Package tun is the device end of a tunnel: a TUN device that looks like the
// kernel's own ipip device, and the queues through which its packets pass.
//
// songgao/water opens every data queue. It cannot ask for the virtio-net header,
// but a queue that joins an existing multi-queue device inherits that device's
// flags (tun_set_iff in drivers/net/tun.c), so a control descriptor creates the
// device first, with the header, and is gone when the queues are there.
package tun

import (
	"errors"
	"fmt"
	"os"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// MaxQueues is the most queues a device can have: the kernel's MAX_TAP_QUEUES
// less the control descriptor's.
const MaxQueues = 255

// ErrDeleted means that the device is gone: somebody deleted the link. Every
// later call on its queues returns it too.
var ErrDeleted = errors.New("the link was deleted")

// Config describes a device.
type Config struct {
	Name   string // at most 15 bytes; empty for the first free of goipip0, goipip1, …
	Queues int    // 1 … MaxQueues
	// Offload asks for the virtio-net header on each packet, and with it for
	// superpackets, and checksums left to the other side. Where the kernel has no
	// such header, the device works without.
	Offload bool
}

// Device is a TUN device that lives as long as its queues are open.
type Device struct {
	name   string
	index  int
	uso    bool
	queues []*Queue
	drops  drops
}

// Open creates the device, which is down and without addresses until Setup, in
// the network namespace of the calling thread. It never joins an existing one:
// a name that is taken is an error that errors.Is(err, os.ErrExist).
func Open(cfg Config) (*Device, error) {
	d, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("create tun %q: %w", cfg.Name, err)
	}
	return d, nil
}

func open(cfg Config) (_ *Device, err error) {
	d := &Device{}
	control, err := d.create(cfg)
	if err != nil {
		return nil, err
	}
	defer unix.Close(control) // the device stays while it has another queue

	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	for range cfg.Queues {
		q, err := openQueue(d.name)
		if err != nil {
			return nil, err
		}
		d.queues = append(d.queues, q)
	}
	if err := d.drops.open(); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	d.index, err = linkIndex(d.name)
	return d, err
}

// create makes the device by a descriptor that takes no part in its traffic.
func (d *Device) create(cfg Config) (control int, err error) {
	control, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, openError(err)
	}
	if err := d.configure(control, cfg); err != nil {
		unix.Close(control)
		return -1, err
	}
	return control, nil
}

func (d *Device) configure(control int, cfg Config) error {
	pattern := cfg.Name
	if pattern == "" {
		pattern = "goipip%d"
	}
	ifr, err := unix.NewIfreq(pattern)
	if err != nil {
		return fmt.Errorf("the name is longer than %d bytes", unix.IFNAMSIZ-1)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_TUN_EXCL)
	if cfg.Offload {
		flags |= unix.IFF_VNET_HDR
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(control, unix.TUNSETIFF, ifr); err != nil {
		return createError(err)
	}
	d.name = ifr.Name()
	// While it is down, the device can become what the kernel's ipip device is to
	// others (O1): link/ipip for ip(8), link-type RAW for tcpdump(8).
	if err := unix.IoctlSetInt(control, unix.TUNSETLINK, unix.ARPHRD_TUNNEL); err != nil {
		return os.NewSyscallError("TUNSETLINK", err)
	}
	if cfg.Offload {
		if err := d.setOffload(control); err != nil {
			return err
		}
	}
	return nil
}

// setOffload tells the kernel how much of its work may be left to a reader: as much
// as it offers. What it does not know it refuses with EINVAL, and does itself; each
// packet's header says which.
func (d *Device) setOffload(control int) error {
	const (
		csum = unix.TUN_F_CSUM
		tso  = csum | unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN
		uso  = tso | unix.TUN_F_USO4 | unix.TUN_F_USO6 // Linux 6.2; one needs the other
	)
	for _, offload := range []int{uso, tso, csum} {
		err := unix.IoctlSetInt(control, unix.TUNSETOFFLOAD, offload)
		if err == nil {
			d.uso = offload == uso
			return nil
		}
		if err != unix.EINVAL {
			return os.NewSyscallError("TUNSETOFFLOAD", err)
		}
	}
	return nil
}

// openError says what a person can do about a /dev/net/tun that does not open.
func openError(err error) error {
	err = &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: load the tun module (modprobe tun), or start the container with --device /dev/net/tun", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: run as root, or let this user open it", err)
	}
	return err
}

// createError does the same for a device that the kernel does not make.
func createError(err error) error {
	switch err {
	case unix.EBUSY: // what IFF_TUN_EXCL gives for a name that is taken
		return fmt.Errorf("%w: choose another --name, or remove that link (ip link delete)", unix.EEXIST)
	case unix.EPERM:
		return fmt.Errorf("%w: needs CAP_NET_ADMIN: run as root, or start the container with --cap-add NET_ADMIN", err)
	case unix.EINVAL:
		return fmt.Errorf("%w: the kernel does not take this name", err)
	}
	return os.NewSyscallError("TUNSETIFF", err)
}

// openQueue attaches one more queue to the device.
func openQueue(name string) (*Queue, error) {
	w, err := water.New(water.Config{
		DeviceType: water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{
			Name:       name,
			MultiQueue: true,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("attach queue: %w", err)
	}
	file := w.ReadWriteCloser.(*os.File) // what water opens on Linux
	defer file.Close()                   // the queue has a duplicate
	flags, err := flagsOf(file)
	if err != nil {
		return nil, err
	}
	return newQueue(file, flags&unix.IFF_VNET_HDR != 0)
}

// flagsOf returns the flags that the kernel gave a queue (TUNGETIFF, IFF_*).
func flagsOf(file *os.File) (flags uint16, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		ifr, _ := unix.NewIfreq("")
		if err = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr); err != nil {
			err = os.NewSyscallError("TUNGETIFF", err)
			return
		}
		flags = ifr.Uint16()
	})
	return flags, errors.Join(ctlErr, err)
}

// Name returns the name that the device was created with. A person may rename
// it later; Index stays.
func (d *Device) Name() string { return d.name }

// Index returns the interface index in the namespace that Open was called in.
func (d *Device) Index() int { return d.index }

// USO reports whether the kernel knows superpackets of UDP (virtio-net's
// GSO_UDP_L4).
func (d *Device) USO() bool { return d.uso }

// Queues returns the device's queues, which the device closes.
func (d *Device) Queues() []*Queue { return d.queues }

// Close closes all queues, which removes the device and ends their Reads.
func (d *Device) Close() error {
	d.QueueDrops() // for those who ask later
	d.drops.close()
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.fd.Close())
	}
	return errors.Join(errs...)
}
