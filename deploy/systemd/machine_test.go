package systemd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// boot makes a machine out of namespaces: systemd as process 1, on a copy of this machine's
// files that forgets what is written to it. $1 is an empty directory, $2 has files that are
// added, and $3 is a control group of the machine's own.
//
// Of systemd's units only those start that others need. What could reach the real machine is not
// there: /proc/sys and /sys are read-only, /dev has what a container has, and some capabilities
// are gone.
const boot = `
set -e
echo $$ >"$3/cgroup.procs"
exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child sh -e -c '
	mount --make-rprivate /
	mount -t tmpfs tmpfs "$1"
	mkdir "$1/upper" "$1/work" "$1/root"
	mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
	cd "$1/root"
	mount -t proc proc proc
	for path in proc/sys proc/sysrq-trigger; do
		if [ -e "$path" ]; then
			mount --bind "$path" "$path"
			mount -o remount,bind,ro "$path"
		fi
	done
	mount -t sysfs -o ro sysfs sys
	mount -t cgroup2 cgroup2 sys/fs/cgroup
	for path in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$path"; done
	chmod 1777 tmp
	for name in null zero full random urandom tty; do
		touch "dev/$name"
		mount --bind "/dev/$name" "dev/$name"
	done
	mkdir dev/net dev/shm dev/pts
	mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
	ln -s pts/ptmx dev/ptmx
	mknod -m 666 dev/net/tun c 10 200
	rm -rf etc/fstab etc/systemd/system/* lib/systemd/system/*.wants
	cp -r "$2/." .
	echo >etc/machine-id
	exec env -i container=goipip-test PATH="$PATH" chroot . setpriv \
		--bounding-set -audit_control,-audit_read,-sys_boot,-sys_module,-sys_rawio,-sys_time,-syslog \
		/lib/systemd/systemd --unit=basic.target --log-target=journal-or-kmsg --show-status=no
' sh "$1" "$2"
`

// machine is a host on which systemd runs.
type machine struct {
	t    *testing.T
	host *netlab.Host
	init int // the process id of its process 1
}

// startMachine starts systemd on a host, with files by their paths beside those of this
// machine, and with goipip in /usr/bin.
func startMachine(t *testing.T, host *netlab.Host, files map[string]string) *machine {
	t.Helper()
	labtest.Need(t, "systemd", "setpriv", "tun")
	added := t.TempDir()
	for path, content := range files {
		write(t, filepath.Join(added, path), content, 0o644)
	}
	program, err := os.ReadFile(labtest.Build(t, "goipip/cmd/goipip"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(added, "usr/bin/goipip"), string(program), 0o755)

	group := makeGroup(t)
	var said bytes.Buffer
	cmd := exec.Command("sh", "-c", boot, "sh", t.TempDir(), added, group)
	cmd.Stdout, cmd.Stderr = &said, &said
	p, err := host.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait(t.Context()) }()
	m := &machine{t: t, host: host}
	labtest.WaitFor(t, "systemd to run", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("no systemd: %v: %s", err, &said)
		default:
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.Pid()))
		if err != nil {
			return false
		}
		if m.init, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
			return false
		}
		_, err = os.Stat(fmt.Sprintf("/proc/%d/root/run/systemd/private", m.init))
		return err == nil
	})
	m.does("systemctl start systemd-journald.service")
	return m
}

// makeGroup makes a control group, which is removed after the test with all that is in it.
func makeGroup(t *testing.T) string {
	t.Helper()
	parent, err := labtest.ControlGroups()
	if err != nil {
		t.Fatal(err)
	}
	group, err := os.MkdirTemp(parent, "goipip-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0); err != nil {
			t.Error(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			err := removeGroups(group)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	return group
}

// removeGroups removes a control group and those below it.
func removeGroups(group string) error {
	below, err := filepath.Glob(filepath.Join(group, "*/cgroup.procs"))
	if err != nil {
		return err
	}
	var errs []error
	for _, procs := range below {
		errs = append(errs, removeGroups(filepath.Dir(procs)))
	}
	return errors.Join(append(errs, os.Remove(group))...)
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// path returns where this machine has a file of m.
func (m *machine) path(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.init), path)
}

// tries runs a command line as root, and returns what it wrote.
func (m *machine) tries(line string) (string, error) {
	m.t.Helper()
	out, err := exec.CommandContext(labtest.Context(m.t), "nsenter", "--all", "--target", strconv.Itoa(m.init),
		"--root", "--wd", "sh", "-c", line).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// does runs a command line as root, which must succeed.
func (m *machine) does(line string) string {
	m.t.Helper()
	out, err := m.tries(line)
	if err != nil {
		more, _ := m.tries("systemctl status --no-pager --full 'goipip*'; journalctl --no-pager -n 30")
		m.t.Fatalf("%s: %v: %s\n%s", line, err, out, more)
	}
	return out
}

// property returns a property of a unit, as systemctl show says it.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return m.does("systemctl show --value -p " + name + " " + unit)
}

// becomes waits until a property of a unit has a value.
func (m *machine) becomes(unit, name, want string) {
	m.t.Helper()
	defer func() {
		if m.t.Failed() {
			state, _ := m.tries("systemctl status --no-pager --full " + unit)
			m.t.Logf("%s of %s is %q: %s", name, unit, m.property(unit, name), state)
		}
	}()
	labtest.WaitFor(m.t, unit+": "+name+" to be "+want, func() bool { return m.property(unit, name) == want })
}
