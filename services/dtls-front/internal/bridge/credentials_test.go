package bridge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := template("authority")
	root.IsCA = true
	data, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(data)
	if err != nil {
		t.Fatal(err)
	}
	return authority{key, certificate}
}

// issue writes the files of a certificate with a DNS name into a folder, over what is there.
func (a authority) issue(t *testing.T, folder, name string) Certificates {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := template("service")
	leaf.DNSNames = []string{name}
	data, err := x509.CreateCertificate(rand.Reader, leaf, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := Certificates{filepath.Join(folder, "ca"), filepath.Join(folder, "crt"), filepath.Join(folder, "key"),
		"tinymlaas.internal"}
	for path, block := range map[string]*pem.Block{
		files.CA:          {Type: "CERTIFICATE", Bytes: a.certificate.Raw},
		files.Certificate: {Type: "CERTIFICATE", Bytes: data},
		files.Key:         {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// shake is one handshake of the front's credentials with a server that has these files; the name that the server saw.
func shake(t *testing.T, front, server Certificates) (string, error) {
	t.Helper()
	proof, err := front.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(server.Certificate, server.Key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 1)
	go func() {
		defer far.Close()
		connection := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{pair},
			ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"}})
		if connection.Handshake() == nil {
			seen <- connection.ConnectionState().PeerCertificates[0].DNSNames[0]
		}
		close(seen)
	}()
	if _, _, err = proof.ClientHandshake(t.Context(), "127.0.0.1:7004", near); err != nil {
		return "", err
	}
	return <-seen, nil
}

func TestOnlyTheBridgeOfTheAuthorityIsSpokenTo(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	front := ours.issue(t, t.TempDir(), "dtls-front.tinymlaas.internal")
	if name, err := shake(t, front, ours.issue(t, t.TempDir(), "lwm2m-bridge.tinymlaas.internal")); err != nil ||
		name != "dtls-front.tinymlaas.internal" {
		t.Errorf("the bridge was not spoken to: %q %v", name, err)
	}
	if _, err := shake(t, front, ours.issue(t, t.TempDir(), "registry.tinymlaas.internal")); err == nil {
		t.Error("another service was spoken to")
	}
	if _, err := shake(t, front, others.issue(t, t.TempDir(), "lwm2m-bridge.tinymlaas.internal")); err == nil {
		t.Error("a bridge of another authority was spoken to")
	}
}

func TestNewFilesAreUsedForTheNextHandshake(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	folder := t.TempDir()
	front := first.issue(t, folder, "old.tinymlaas.internal")
	second.issue(t, folder, "dtls-front.tinymlaas.internal")
	name, err := shake(t, front, second.issue(t, t.TempDir(), "lwm2m-bridge.tinymlaas.internal"))
	if err != nil || name != "dtls-front.tinymlaas.internal" {
		t.Errorf("the old files are still in use: %q %v", name, err)
	}
}

func TestHalfOfTheFilesIsRefused(t *testing.T) {
	if _, err := (Certificates{CA: "ca.pem"}).Credentials(); err == nil {
		t.Error("half of the files was taken")
	}
}
