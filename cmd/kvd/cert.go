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

// certCommand makes certificates for trials. It is not a public key
// infrastructure: it issues once, and neither renews nor revokes.
func certCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "cert", Short: "Make certificates for trying out TLS", RunE: chooseSubcommand}
	cmd.AddCommand(certInitCommand())
	return cmd
}

// certPlan describes the certificates to make.
type certPlan struct {
	dir     string
	hosts   []string // each the names of one member, separated by commas
	members int
	days    int
}

// certInitCommand makes all certificates of a cluster at once.
func certInitCommand() *cobra.Command {
	var p certPlan
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make an authority, a certificate for each member, and one for clients",
		Long: `Make a certificate authority, a certificate for each member, valid for its hosts and for
localhost, and a certificate for a client. Existing files are never touched. Anyone who has
ca-key.pem can make more certificates: keep it off the nodes.`,
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
	cmd.Flags().StringVar(&p.dir, "dir", defaultCertDir, "write to this `DIRECTORY`")
	cmd.Flags().StringArrayVar(&p.hosts, "host", nil, "issue a member's certificate for these `HOSTS`, names or addresses separated by commas; once for each member (default: this machine only)")
	cmd.Flags().IntVar(&p.members, "members", 0, "make certificates for this `NUMBER` of members (default: one for each --host, or 1)")
	cmd.Flags().IntVar(&p.days, "days", 365, "make certificates valid for this many `DAYS`; the authority is valid for ten years")
	return cmd
}

// check validates the plan and fills in its defaults.
func (p *certPlan) check() error {
	if p.members == 0 {
		p.members = max(1, len(p.hosts))
	}
	switch {
	case p.members < 1 || p.members > maxCertMembers:
		return fmt.Errorf("--members is %d, but must be between 1 and %d", p.members, maxCertMembers)
	case len(p.hosts) > 1 && len(p.hosts) != p.members:
		return fmt.Errorf("--members is %d, but --host is given %d times; give it once for each member, or once for all", p.members, len(p.hosts))
	case p.days < 1 || p.days > 365*authorityYears:
		return fmt.Errorf("--days is %d, but must be between 1 and %d", p.days, 365*authorityYears)
	}
	for _, list := range p.hosts {
		for host := range strings.SplitSeq(list, ",") {
			// One colon comes before a port; an IPv6 address has at least two.
			if host == "" || strings.ContainsAny(host, "/ \t[]") || strings.Contains(host, ":") && strings.Count(host, ":") == 1 {
				return fmt.Errorf("--host %q: %q is not a name or an address; leave out the scheme and the port", list, host)
			}
		}
	}
	return nil
}

// hostsOf returns the hosts of a member, counted from 0.
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

// newFile is a file to write.
type newFile struct {
	name string
	data []byte
	what string // its description; "" for a key, which is listed with its certificate
}

// mode keeps keys from other users. Certificates are public: nodes and clients
// may run as different users.
func (f newFile) mode() fs.FileMode {
	if f.what == "" {
		return 0o600
	}
	return 0o644
}

// make generates everything in memory first, so that a failure leaves no files.
func (p *certPlan) make(now time.Time) (files []newFile, _ error) {
	ca, err := certs.NewAuthority("kvd "+now.Format(time.DateOnly), now.AddDate(authorityYears, 0, 0))
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
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

// writeNew writes all files, or none if one of them exists: a new authority
// with the members of an old one would be of no use.
func writeNew(dir string, files []newFile) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s exists; nothing was written; move it away or choose another --dir", filepath.Join(dir, f.name))
		}
	}
	for _, f := range files {
		if err := writeExclusive(filepath.Join(dir, f.name), f); err != nil {
			return err
		}
	}
	return nil
}

// writeExclusive refuses a file that appeared since writeNew looked, and syncs:
// a key that is lost in a crash cannot be made again.
func writeExclusive(path string, f newFile) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode())
	if err != nil {
		return err
	}
	_, err = out.Write(f.data)
	return errors.Join(err, out.Sync(), out.Close())
}

// explain lists the files and how to use them.
func (p *certPlan) explain(w io.Writer, files []newFile) error {
	var out strings.Builder
	fmt.Fprintf(&out, "Certificates in %s, each with its key (-key.pem):\n", p.dir)
	for _, f := range files {
		if f.what != "" {
			fmt.Fprintf(&out, "  %-13s %s\n", f.name, f.what)
		}
	}
	in := func(name string) string { return filepath.Join(p.dir, name) }
	fmt.Fprintf(&out, `
The certificates are valid for %d days. Keep ca-key.pem off the nodes: anyone who has it can
make certificates. A member needs ca.pem and its own two files; for example, member 1:

  kvd --listen-client https://... --listen-peer https://... \
    --tls-cert-file %[2]s --tls-key-file %[3]s --tls-ca-file %[4]s \
    --peer-cert-file %[2]s --peer-key-file %[3]s --peer-ca-file %[4]s

With --tls-ca-file, clients must present a certificate; without it, anyone can be a client:

  curl --cacert %[4]s --cert %[5]s --key %[6]s https://.../v1/status
`, p.days, in("member1.pem"), in("member1-key.pem"), in("ca.pem"), in("client.pem"), in("client-key.pem"))
	_, err := io.WriteString(w, out.String())
	return err
}
