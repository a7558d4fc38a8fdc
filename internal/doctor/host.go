package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"goipip/internal/fastpath"
	"goipip/internal/tunnel"
	"goipip/rawsock"
	"goipip/tun"

	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// whyTUN says why the device matters.
const whyTUN = "a tunnel's link is a TUN device: without it there is none"

// tun opens the TUN device.
func (e *exam) tun(host) []Result {
	file, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err == nil {
		file.Close()
		return good("%s opens", tunDevice)
	}
	r := Result{Status: Failure, Saw: err.Error(), Why: whyTUN}
	switch {
	case errors.Is(err, fs.ErrNotExist) && hasTUNDriver():
		r.Cure = "make the device; in a container, start that with --device /dev/net/tun"
		r.Commands = []string{"mkdir -p /dev/net", "mknod -m 666 /dev/net/tun c 10 200"}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		r.Cure = "load the module tun, on the machine itself if this is a container"
		r.Commands = []string{"modprobe tun"}
	case errors.Is(err, syscall.EPERM):
		r.Cure = "this control group may not open the device: start the container with --device /dev/net/tun, " +
			"or give the systemd unit DeviceAllow=/dev/net/tun"
	case noDevices(tunDevice):
		r.Cure = "its file system is mounted nodev: start the container with --device /dev/net/tun"
	case errors.Is(err, syscall.EACCES):
		r.Cure = "run as root, or let this user open the device"
		r.Commands = []string{"chmod 666 " + tunDevice}
	}
	return []Result{r}
}

// hasTUNDriver reports whether the kernel has the device, of which only the file is missing.
func hasTUNDriver() bool {
	misc, err := os.ReadFile("/proc/misc")
	return err == nil && slices.Contains(strings.Fields(string(misc)), "tun")
}

// noDevices reports whether a file is on a file system where devices do not open.
func noDevices(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Flags&unix.ST_NODEV != 0
}

// netAdmin makes a link.
func (e *exam) netAdmin(host) []Result {
	const why = "without CAP_NET_ADMIN no link can be made or configured"
	if !effective(unix.CAP_NET_ADMIN) {
		return noCapability(unix.CAP_NET_ADMIN, "NET_ADMIN", why)
	}
	if err := makeLink(); errors.Is(err, fs.ErrPermission) && !errors.Is(err, errOpenTUN) {
		return []Result{{
			Status: Failure, Saw: "CAP_NET_ADMIN does not count in this network namespace: " + err.Error(), Why: why,
			Cure: "run goipip in the user namespace that made the network namespace, or as root of the machine",
		}}
	} else if err != nil && !errors.Is(err, errOpenTUN) {
		return []Result{{Status: Failure, Saw: err.Error(), Why: whyTUN, Cure: "see what the error says"}}
	}
	return good("CAP_NET_ADMIN is there")
}

// errOpenTUN is what tun reports already.
var errOpenTUN = errors.New("the TUN device does not open")

func makeLink() error {
	file, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return errOpenTUN
	}
	file.Close()
	h, err := tun.NewHost()
	if err != nil {
		return err
	}
	defer h.Close()
	d, err := h.Open(tun.Config{Queues: 1, Offload: true})
	if err != nil {
		return err
	}
	return d.Close()
}

// netRaw opens a raw socket.
func (e *exam) netRaw(host) []Result {
	r, err := rawsock.NewReceiver(0, 1)
	if err == nil {
		r.Close()
		return good("a raw socket opens")
	}
	const why = "outer packets come and go by raw sockets"
	if !effective(unix.CAP_NET_RAW) {
		return noCapability(unix.CAP_NET_RAW, "NET_RAW", why)
	}
	return []Result{{
		Status: Failure, Saw: err.Error(), Why: why,
		Cure: "run goipip in the user namespace that made the network namespace, or as root of the machine; look for a seccomp filter",
	}}
}

// effective reports whether this process has a capability.
func effective(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[capability/32].Effective&(1<<(capability%32)) != 0
}

// noCapability is the result of a check that finds a capability missing.
func noCapability(capability uintptr, name, why string) []Result {
	r := Result{Status: Failure, Saw: "CAP_" + name + " is missing", Why: why}
	program, err := os.Executable()
	// 0 means that no program that is started from here can have it.
	if bound, e := unix.PrctlRetInt(unix.PR_CAPBSET_READ, capability, 0, 0, 0); err != nil || e != nil || bound == 0 || os.Geteuid() == 0 {
		r.Cure = fmt.Sprintf("start the container with --cap-add %[1]s, or add CAP_%[1]s to the systemd unit's CapabilityBoundingSet= and AmbientCapabilities=", name)
		return []Result{r}
	}
	r.Cure = "run as root, or give the program its capabilities"
	r.Commands = []string{command("setcap", "cap_net_admin,cap_net_raw+ep", program)}
	return []Result{r}
}

// initialUserNamespace is the inode of the machine's own (PROC_USER_INIT_INO in
// include/linux/proc_ns.h).
const initialUserNamespace = 0xeffffffd

// userNamespace looks for a user namespace other than the machine's.
func (e *exam) userNamespace(host) []Result {
	var s unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &s); err != nil || s.Ino == initialUserNamespace {
		return good("the machine's own user namespace")
	}
	return []Result{{
		Status: Warning, Saw: "a user namespace of its own (rootless container, unshare --user)",
		Why: "capabilities here do not permit BPF and socket buffers beyond net.core.rmem_max and wmem_max: " +
			"packets may be dropped in bursts, and there is no fast path",
		Cure: "start goipip outside of it, or raise net.core.rmem_max and wmem_max on the machine",
	}}
}

// descriptors is what the caller has found.
func (e *exam) descriptors(host) []Result {
	if e.Descriptors == nil {
		return good("there are enough file descriptors")
	}
	return []Result{{
		Status: Failure, Saw: e.Descriptors.Error(), Why: "a process that may not open enough files does not start",
		Cure: "raise the limit in the shell or service that starts goipip: ulimit -n, or LimitNOFILE= of the systemd unit",
	}}
}

// bpf loads the filter of a receiver.
func (e *exam) bpf(host) []Result {
	r, err := rawsock.NewReceiver(0, 1)
	if err != nil {
		return nil // netRaw says so
	}
	defer r.Close()
	if err := r.NeedsGuard(); err != nil {
		return []Result{{
			Status: Warning, Saw: "no eBPF filter: " + err.Error(),
			Why:  "a second socket stands in for the filter, which costs each packet that comes some 100 ns",
			Cure: "give goipip CAP_BPF (--cap-add BPF), on a machine whose kernel permits it",
		}}
	}
	return good("sockets take eBPF filters")
}

// fastPath loads the programs of the fast path.
func (e *exam) fastPath(host) []Result {
	h, err := fastpath.Open()
	if err == nil {
		h.Close()
		return good("can be had (--fast-path)")
	}
	status := Warning
	wanted := len(e.subjects) == 0
	for _, s := range e.subjects {
		wanted = wanted || s.Config.Fast != tunnel.FastOff
		if s.Config.Fast == tunnel.FastOn {
			status = Failure
		}
	}
	if !wanted {
		return good("no tunnel asks for it; cannot be had: %v", err)
	}
	return []Result{{
		Status: status, Saw: err.Error(), Why: "packets pass goipip, at a tenth of the speed that the kernel alone would have",
		Cure: "follow the message, or say --fast-path off",
	}}
}

// module looks for something else that handles ipip packets.
func (e *exam) module(host) []Result {
	if e.watcher == nil {
		return nil
	}
	return moduleResult(e.watcher.Conflict())
}

// moduleResult is the result for what underlay's Conflict returns.
func moduleResult(found string) []Result {
	if found == "" {
		return good("nothing else here answers ipip packets")
	}
	r := Result{
		Status: Failure, Saw: "this kernel handles ipip packets too: " + found,
		Why: "it answers each packet of goipip's tunnels with ICMP 3/3, which a kernel at the other end takes for an error",
		Cure: "remove the modules, if no tunnel of the kernel is in use, or keep the answers here: " +
			"iptables -I OUTPUT -p icmp --icmp-type port-unreachable -d REMOTE -j DROP",
	}
	if users, isModule := strings.CutPrefix(found, "tunnel4"); isModule {
		users = strings.ReplaceAll(strings.TrimPrefix(users, ", for "), ",", " ")
		r.Commands = []string{strings.Join(strings.Fields("rmmod "+users+" tunnel4"), " ")}
	}
	return []Result{r}
}
