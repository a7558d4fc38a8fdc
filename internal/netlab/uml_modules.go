package netlab

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// umlModules has a directory of modules for each release of linux.uml that is installed.
const umlModules = "/usr/lib/uml/modules"

// insmod loads module files in their order. Perl is there on any Debian, other than insmod(8).
const insmod = `cd %s && exec perl -e '
my $params = "";
for (@ARGV) {
	open my $file, "<", $_ or die "$_: $!\n";
	syscall(%d, fileno $file, $params, 0) == 0 or $!{EEXIST} or die "$_: $!\n";
}' %s`

// LoadModules loads modules into the guest's kernel, such as "ipip", after those they need. To load one again does nothing.
func (g *Guest) LoadModules(names ...string) error {
	release, err := g.Run("uname -r")
	if err != nil {
		return err
	}
	dir := path.Join(umlModules, strings.TrimSpace(release))
	deps, err := os.ReadFile(path.Join(dir, "modules.dep"))
	if err != nil {
		return fmt.Errorf("find modules of guest on host %s: %w", g.host.Name, err)
	}
	var files []string
	for _, name := range names {
		found := moduleFiles(string(deps), name)
		if found == nil {
			return fmt.Errorf("guest on host %s: no module %s in %s", g.host.Name, name, dir)
		}
		files = append(files, found...)
	}
	_, err = g.Run(fmt.Sprintf(insmod, dir, unix.SYS_FINIT_MODULE, strings.Join(files, " ")))
	return err
}

// moduleFiles returns the files that modules.dep(5) names for a module, in the order to load them.
func moduleFiles(deps, name string) []string {
	for line := range strings.Lines(deps) {
		file, needs, _ := strings.Cut(line, ":")
		if strings.ReplaceAll(path.Base(file), "-", "_") == strings.ReplaceAll(name, "-", "_")+".ko" {
			files := append([]string{file}, strings.Fields(needs)...)
			slices.Reverse(files)
			return files
		}
	}
	return nil
}
