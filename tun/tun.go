// Package tun is the device end of a tunnel: TUN devices that look like the kernel's
// own ipip devices, and the queues through which their packets pass.
//
// A [Host] opens the devices of a network namespace. A [Device] owns its link and its
// queues. A [Reader] and a [Writer] belong to a worker, and serve the queues of any
// number of devices.
//
// songgao/water opens every data queue. It cannot ask for the virtio-net header, but a
// queue that joins an existing multi-queue device inherits that device's flags
// (tun_set_iff in drivers/net/tun.c). So a control descriptor creates the device first,
// with the header, and is closed when the queues are there.
package tun

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// MaxQueues is the maximum number of queues of a device: the kernel's MAX_TAP_QUEUES
// less the control descriptor's.
const MaxQueues = 255

// Config describes a device.
type Config struct {
	Name   string // at most 15 bytes; empty for the first free of goipip0, goipip1, …
	Queues int    // 1 to MaxQueues
	// Offload asks for the virtio-net header on each packet, and so for superpackets
	// and for checksums left to the reader. Where the kernel has no such header, the
	// device works without.
	Offload bool
}

// Device is a TUN device. It exists as long as its queues are open.
type Device struct {
	host   *Host
	name   string
	index  int
	uso    bool
	queues []*Queue
	drops  drops
}

// Open creates a device, which is down and without addresses until Setup. The calling
// thread must be in the Host's network namespace, where the kernel creates the device.
// Open never joins an existing device: errors.Is(err, os.ErrExist) reports that the name
// is taken. Any goroutine may call it. Its cost does not depend on the number of links.
func (h *Host) Open(cfg Config) (*Device, error) {
	d, err := h.open(cfg)
	if err != nil {
		return nil, fmt.Errorf("create tun %q: %w", cfg.Name, err)
	}
	return d, nil
}

func (h *Host) open(cfg Config) (_ *Device, err error) {
	d := &Device{host: h}
	control, err := d.create(cfg)
	if err != nil {
		return nil, err
	}
	defer unix.Close(control) // the device stays while it has another queue

	defer func() {
		if err != nil {
			_ = d.closeQueues()
		}
	}()
	if d.index, err = h.linkIndex(d.name); err != nil {
		return nil, fmt.Errorf("find the new link: %w", err)
	}
	for range cfg.Queues {
		q, err := openQueue(d.name)
		if err != nil {
			return nil, err
		}
		d.queues = append(d.queues, q)
	}
	return d, nil
}

// create makes the device by a descriptor that carries no packets.
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
	// While it is down, the device can take the link type of the kernel's ipip device
	// (O1): ip(8) shows link/ipip, tcpdump(8) link-type RAW.
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

// setOffload lets the kernel leave to the reader as much of its work as it offers. It
// refuses with EINVAL what it does not know, and does that work itself. Each packet's
// header says what is left.
func (d *Device) setOffload(control int) error {
	const (
		csum = unix.TUN_F_CSUM
		tso  = csum | unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN
		uso  = tso | unix.TUN_F_USO4 | unix.TUN_F_USO6 // Linux 6.2; only both together
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

// openError adds to an error of opening /dev/net/tun what helps.
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

// createError adds to an error of TUNSETIFF what helps.
func createError(err error) error {
	switch err {
	case unix.EBUSY: // what IFF_TUN_EXCL gives for a name that is taken
		return fmt.Errorf("%w: choose another name, or remove that link (ip link delete)", unix.EEXIST)
	case unix.EPERM:
		return fmt.Errorf("%w: needs CAP_NET_ADMIN: run as root, or start the container with --cap-add NET_ADMIN", err)
	case unix.EINVAL:
		return fmt.Errorf("%w: the kernel does not accept this name", err)
	}
	return os.NewSyscallError("TUNSETIFF", err)
}

// openQueue attaches one more queue to the device.
func openQueue(name string) (*Queue, error) {
	// water opens without O_CLOEXEC: a program that was started meanwhile would keep the link.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
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

// Name returns the name that the device was created with. The link may be renamed
// later; Index stays.
func (d *Device) Name() string { return d.name }

// Index returns the link's index in the Host's network namespace.
func (d *Device) Index() int { return d.index }

// USO reports whether the kernel knows superpackets of UDP (virtio-net's GSO_UDP_L4,
// Linux 6.2).
func (d *Device) USO() bool { return d.uso }

// Queues returns the device's queues, as many as [Config] asked for. The device owns the
// slice and closes the queues.
func (d *Device) Queues() []*Queue { return d.queues }

// Close closes all queues, which removes the link: reading from them and writing to them
// return os.ErrClosed from then on. It waits for calls that are under way. Closing once
// more does nothing.
func (d *Device) Close() error {
	d.QueueDrops() // for calls after Close
	return d.closeQueues()
}

func (d *Device) closeQueues() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.fd.Close())
	}
	return errors.Join(errs...)
}
