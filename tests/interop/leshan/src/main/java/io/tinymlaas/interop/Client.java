package io.tinymlaas.interop;

import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;

import org.eclipse.californium.core.config.CoapConfig;
import org.eclipse.californium.elements.config.Configuration;
import org.eclipse.californium.scandium.config.DtlsConfig;
import org.eclipse.leshan.client.LeshanClient;
import org.eclipse.leshan.client.LeshanClientBuilder;
import org.eclipse.leshan.client.engine.DefaultRegistrationEngineFactory;
import org.eclipse.leshan.client.object.Security;
import org.eclipse.leshan.client.object.Server;
import org.eclipse.leshan.client.observer.LwM2mClientObserverAdapter;
import org.eclipse.leshan.client.resource.BaseInstanceEnablerFactory;
import org.eclipse.leshan.client.resource.LwM2mInstanceEnabler;
import org.eclipse.leshan.client.resource.LwM2mObjectEnabler;
import org.eclipse.leshan.client.resource.ObjectsInitializer;
import org.eclipse.leshan.client.servers.LwM2mServer;
import org.eclipse.leshan.core.LwM2mId;
import org.eclipse.leshan.core.model.ObjectLoader;
import org.eclipse.leshan.core.model.ObjectModel;
import org.eclipse.leshan.core.model.StaticModel;
import org.eclipse.leshan.core.request.BindingMode;
import org.eclipse.leshan.core.request.BootstrapRequest;
import org.eclipse.leshan.core.request.DeregisterRequest;
import org.eclipse.leshan.core.request.RegisterRequest;
import org.eclipse.leshan.core.request.UpdateRequest;
import org.eclipse.leshan.transport.californium.client.endpoint.CaliforniumClientEndpointsProvider;
import org.eclipse.leshan.transport.californium.client.endpoint.coap.CoapClientProtocolProvider;
import org.eclipse.leshan.transport.californium.client.endpoint.coaps.CoapsClientProtocolProvider;

/**
 * An ordinary LwM2M 1.1 device on Eclipse Leshan: objects 3, 4, 5, 9 (two instances) and 3303.
 *
 * Options: --endpoint, --server URI or --bootstrap URI, --identity and --key (hexadecimal) of a pre-shared key for a coaps one, --patience ms for an answer, --lifetime s, --queue true, --firmware-only true (no object 9), --models folder of OMA definitions.
 * Commands, one JSON object a line: {"do": "temperature", "value": 21.5}, "update", "sleep", "wake", "stop".
 */
public final class Client {
    private static final int SERVER_ID = 123;
    private static final int MAX_BODY = 4 * 1024 * 1024;

    private Client() {
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = Wire.options(arguments);
        CaliforniumClientEndpointsProvider.Builder endpoints = new CaliforniumClientEndpointsProvider.Builder(
                new CoapClientProtocolProvider(), new CoapsClientProtocolProvider());
        Configuration configuration = endpoints.createDefaultConfiguration();
        configuration.set(CoapConfig.MAX_RESOURCE_BODY_SIZE, MAX_BODY);
        // Sends the server's Connection ID, and needs none itself: it has one session.
        configuration.set(DtlsConfig.DTLS_CONNECTION_ID_LENGTH, 0);
        endpoints.setConfiguration(configuration);

        FixedInstance temperature = new FixedInstance(Map.of(5700, 20.0, 5701, "Cel"));
        List<LwM2mObjectEnabler> objects = objects(options, configuration, temperature);
        DefaultRegistrationEngineFactory engine = new DefaultRegistrationEngineFactory();
        engine.setQueueMode(options.containsKey("queue"));
        engine.setRetryWaitingTimeInMs(500);
        if (options.containsKey("patience")) {
            engine.setRequestTimeoutInMs(Long.parseLong(options.get("patience")));
        }
        LeshanClientBuilder builder = new LeshanClientBuilder(options.get("endpoint"));
        builder.setObjects(objects);
        builder.setEndpointsProviders(endpoints.build());
        builder.setRegistrationEngineFactory(engine);
        LeshanClient client = builder.build();
        client.addObserver(new Told());
        client.start();
        obey(client, temperature);
    }

    private static Security security(Map<String, String> options) {
        if (!options.containsKey("identity")) {
            return Security.noSec(options.get("server"), SERVER_ID);
        }
        return Security.psk(options.get("server"), SERVER_ID, identity(options), key(options));
    }

    private static byte[] identity(Map<String, String> options) {
        return options.get("identity").getBytes(StandardCharsets.UTF_8);
    }

    private static byte[] key(Map<String, String> options) {
        return HexFormat.of().parseHex(options.get("key"));
    }

    private static List<LwM2mObjectEnabler> objects(Map<String, String> options, Configuration configuration,
            FixedInstance temperature) {
        List<ObjectModel> models = ObjectLoader.loadAllDefault();
        models.addAll(ObjectLoader.loadObjectsFromDir(new File(options.get("models")), true));
        ObjectsInitializer initializer = new ObjectsInitializer(new StaticModel(models));
        String bootstrap = options.get("bootstrap");
        if (bootstrap != null) {
            initializer.setInstancesForObject(LwM2mId.SECURITY,
                    options.containsKey("identity") ? Security.pskBootstrap(bootstrap, identity(options), key(options))
                            : Security.noSecBootstrap(bootstrap));
            initializer.setClassForObject(LwM2mId.SERVER, Server.class);
        } else {
            long lifetime = Long.parseLong(options.getOrDefault("lifetime", "60"));
            initializer.setInstancesForObject(LwM2mId.SECURITY, security(options));
            initializer.setInstancesForObject(LwM2mId.SERVER,
                    new Server(SERVER_ID, lifetime, EnumSet.of(BindingMode.U), false, BindingMode.U));
        }
        FixedInstance device = new FixedInstance(Map.of(0, options.getOrDefault("manufacturer", "Leshan"), 1,
                options.getOrDefault("model", "interop"), 2, "L-0001", 3, "1.0", 9, 87L, 10, 512L, 11, Map.of(0, 0L), 16,
                "U", 18, "rev B", 21, 1024L));
        device.values.put(19, "2.0");
        Download download = new Download(configuration);
        initializer.setInstancesForObject(LwM2mId.DEVICE, device);
        initializer.setInstancesForObject(LwM2mId.CONNECTIVITY_MONITORING, new FixedInstance(
                Map.of(0, 6L, 1, Map.of(0, 6L, 1, 7L), 2, -92L, 4, Map.of(0, "127.0.0.1"))));
        initializer.setInstancesForObject(LwM2mId.FIRMWARE, new FirmwareInstance(download, device));
        initializer.setInstancesForObject(3303, temperature);
        List<Integer> own = new ArrayList<>(
                List.of(LwM2mId.DEVICE, LwM2mId.CONNECTIVITY_MONITORING, LwM2mId.FIRMWARE, 3303));
        if (!options.containsKey("firmware-only")) {
            initializer.setInstancesForObject(9, new SoftwareInstance(download), new SoftwareInstance(download));
            own.add(9);
        }
        for (int object : own) {
            // Leshan wants to know how more instances would be made; nobody makes any here.
            initializer.setFactoryForObject(object, new BaseInstanceEnablerFactory() {
                @Override
                public LwM2mInstanceEnabler create() {
                    return new FixedInstance(Map.of());
                }
            });
        }
        return initializer.createAll();
    }

    private static void obey(LeshanClient client, FixedInstance temperature) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            var command = Wire.parse(line);
            switch (command.get("do").asText()) {
            case "temperature" -> temperature.set(5700, command.get("value").asDouble());
            case "update" -> client.triggerRegistrationUpdate();
            case "sleep" -> {
                client.stop(false);
                Wire.tell("asleep");
            }
            case "wake" -> client.start();
            case "stop" -> {
                client.destroy(true);
                Wire.tell("stopped");
                return;
            }
            default -> throw new IllegalArgumentException(line);
            }
        }
        client.destroy(false);
    }

    /** Tells the test what happens to the registration. */
    private static final class Told extends LwM2mClientObserverAdapter {
        @Override
        public void onBootstrapSuccess(LwM2mServer server, BootstrapRequest request) {
            Wire.tell("bootstrapped");
        }

        @Override
        public void onBootstrapFailure(LwM2mServer server, BootstrapRequest request,
                org.eclipse.leshan.core.ResponseCode code, String message, Exception cause) {
            Wire.tell("bootstrap failed", "code", String.valueOf(code), "why", String.valueOf(message));
        }

        @Override
        public void onRegistrationSuccess(LwM2mServer server, RegisterRequest request, String registration) {
            Wire.tell("registered", "server", server.getUri().toString());
        }

        @Override
        public void onRegistrationFailure(LwM2mServer server, RegisterRequest request,
                org.eclipse.leshan.core.ResponseCode code, String message, Exception cause) {
            Wire.tell("registration failed", "code", String.valueOf(code), "why", String.valueOf(message));
        }

        @Override
        public void onRegistrationTimeout(LwM2mServer server, RegisterRequest request) {
            Wire.tell("registration failed", "code", "timeout");
        }

        @Override
        public void onUpdateSuccess(LwM2mServer server, UpdateRequest request) {
            Wire.tell("updated registration");
        }

        @Override
        public void onDeregistrationSuccess(LwM2mServer server, DeregisterRequest request) {
            Wire.tell("deregistered");
        }

        @Override
        public void onUnexpectedError(Throwable error) {
            Wire.tell("unexpected", "why", String.valueOf(error));
        }
    }
}
