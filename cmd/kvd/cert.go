package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/certs"
)

const (
	maxCertMembers = 64
	authorityYears = 10
	defaultCertDir = "kvd-certs"
)

// loopbackNames are in every member's certificate, so that a node can be
// reached from its own machine.
var loopbackNames = []string{"localhost", "127.0.0.1", "::1"}

func certCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Make certificates to try TLS with",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("kvd cert needs a subcommand: init")}
			}
			return usageError{fmt.Errorf("%q is no subcommand of kvd cert; there is: init", args[0])}
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args has the last word
	}
	cmd.AddCommand(certInitCommand())
	return cmd
}

// certPlan is what kvd cert init is to make.
type certPlan struct {
	dir     string
	hosts   []string // each the names of one member, separated by commas
	members int
	days    int
}

func certInitCommand() *cobra.Command {
	var p certPlan
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make an authority, a certificate for each member, and one for clients",
		Long: `Makes a small certificate authority, a certificate for each member, good for its
hosts and for localhost, and one for a client. Nothing that exists is touched.
Whoever has ca-key.pem can make more certificates: keep it off the nodes.`,
		Example: `  kvd cert init --members 3
  kvd cert init --host n1.example,10.0.0.1 --host n2.example --host n3.example`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.check(); err != nil {
				return usageError{err}
			}
			files, err := p.make(time.Now())
			if err != nil {
				return err
			}
			if err := writeNew(p.dir, files); err != nil {
				return fmt.Errorf("make certificates: %w", err)
			}
			return p.explain(cmd.OutOrStdout(), files)
		},
	}
	cmd.Flags().StringVar(&p.dir, "dir", defaultCertDir, "`directory` to write to")
	cmd.Flags().StringArrayVar(&p.hosts, "host", nil, "`names` and addresses of a member, separated by commas; once for each member (default: this machine only)")
	cmd.Flags().IntVar(&p.members, "members", 0, "`number` of members (default: as many as --host, else 1)")
	cmd.Flags().IntVar(&p.days, "days", 365, "`days` for which the certificates are good; the authority's are ten years")
	return cmd
}

// check fills in what was left out.
func (p *certPlan) check() error {
	if p.members == 0 {
		p.members = max(1, len(p.hosts))
	}
	switch {
	case p.members < 1 || p.members > maxCertMembers:
		return fmt.Errorf("--members is %d, but must be between 1 and %d", p.members, maxCertMembers)
	case len(p.hosts) > 1 && len(p.hosts) != p.members:
		return fmt.Errorf("--members is %d, but --host was given %d times; give it once for each member, or once for all", p.members, len(p.hosts))
	case p.days < 1 || p.days > 365*authorityYears:
		return fmt.Errorf("--days is %d, but must be between 1 and %d", p.days, 365*authorityYears)
	}
	for _, list := range p.hosts {
		for host := range strings.SplitSeq(list, ",") {
			if host == "" || strings.ContainsAny(host, "/ \t[]") || strings.Contains(host, ":") && strings.Count(host, ":") == 1 {
				return fmt.Errorf("--host %q: %q is no name or address; leave out scheme and port", list, host)
			}
		}
	}
	return nil
}

// hostsOf are the names of a member, counted from 0.
func (p *certPlan) hostsOf(i int) []string {
	if len(p.hosts) == 0 {
		return loopbackNames
	}
	hosts := strings.Split(p.hosts[min(i, len(p.hosts)-1)], ",")
	for _, name := range loopbackNames {
		if !slices.Contains(hosts, name) {
			hosts = append(hosts, name)
		}
	}
	return hosts
}

// newFile is a file to be written, and what it is.
type newFile struct {
	name string
	data []byte
	what string // "" for a key, which is told with its certificate
}

func (f newFile) mode() fs.FileMode {
	if f.what == "" {
		return 0o600
	}
	return 0o644
}

func (p *certPlan) make(now time.Time) (files []newFile, _ error) {
	ca, err := certs.NewAuthority("kvd "+now.Format(time.DateOnly), now.AddDate(authorityYears, 0, 0))
	if err != nil {
		return nil, fmt.Errorf("make the authority: %w", err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return nil, fmt.Errorf("make the authority: %w", err)
	}
	files = append(files, newFile{"ca.pem", ca.CertPEM, "the authority, for all members and clients"}, newFile{"ca-key.pem", key, ""})
	issue := func(name, what string, hosts []string) error {
		cert, key, err := ca.Issue(certs.Order{Name: name, Hosts: hosts, NotAfter: now.AddDate(0, 0, p.days)})
		files = append(files, newFile{name + ".pem", cert, what}, newFile{name + "-key.pem", key, ""})
		return err
	}
	for i := range p.members {
		hosts := p.hostsOf(i)
		if err := issue(fmt.Sprintf("member%d", i+1), "for "+strings.Join(hosts, ", "), hosts); err != nil {
			return nil, err
		}
	}
	return files, issue("client", "a certificate for a client", nil)
}

// writeNew writes all of the files or none, where one of them exists.
func writeNew(dir string, files []newFile) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s exists; nothing was written. Choose another --dir, or move it away", filepath.Join(dir, f.name))
		}
	}
	for _, f := range files {
		if err := writeExclusive(filepath.Join(dir, f.name), f); err != nil {
			return err
		}
	}
	return nil
}

func writeExclusive(path string, f newFile) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode())
	if err != nil {
		return err
	}
	_, err = out.Write(f.data)
	return errors.Join(err, out.Sync(), out.Close())
}

// explain says what there is now and how to use it.
func (p *certPlan) explain(w io.Writer, files []newFile) error {
	var out strings.Builder
	fmt.Fprintf(&out, "Made in %s, each with its key beside it (-key.pem):\n", p.dir)
	for _, f := range files {
		if f.what != "" {
			fmt.Fprintf(&out, "  %-13s %s\n", f.name, f.what)
		}
	}
	in := func(name string) string { return filepath.Join(p.dir, name) }
	fmt.Fprintf(&out, `
The certificates are good for %d days. Keep ca-key.pem off the nodes: whoever has it
can make certificates. A member needs ca.pem and its own two files; member 1:

  kvd --listen-client https://... --listen-peer https://... \
    --tls-cert-file %[2]s --tls-key-file %[3]s --tls-ca-file %[4]s \
    --peer-cert-file %[2]s --peer-key-file %[3]s --peer-ca-file %[4]s

With --tls-ca-file, clients show a certificate; without it anybody may be a client:

  curl --cacert %[4]s --cert %[5]s --key %[6]s https://.../v1/status
`, p.days, in("member1.pem"), in("member1-key.pem"), in("ca.pem"), in("client.pem"), in("client-key.pem"))
	_, err := io.WriteString(w, out.String())
	return err
}
